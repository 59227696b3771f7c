"""Users in the database."""

import pytest

from arkloop.shared.accounts import accounts
from arkloop.shared.errors import LoginTaken
from arkloop.shared.storage.connections import Connections


def test_a_failed_user_leaves_nothing(connections: Connections) -> None:
    """The org that was made for them goes too."""
    with connections.transaction() as tx:
        org_id = accounts.create_org(tx, "first")
        accounts.create_user(
            tx, org_id=org_id, role="owner", login="a", email="a@b", password_hash=""
        )
    with pytest.raises(LoginTaken), connections.transaction() as tx:
        accounts.create_user(
            tx,
            org_id=accounts.create_org(tx, "second"),
            role="owner",
            login="A",
            email="other@b",
            password_hash="",
        )

    with connections.reading() as sql:
        assert ["first"] == [user.org_name for user in accounts.list_(sql)]


def test_a_new_name_is_checked_for_all_that_is_wrong() -> None:
    """Problems of both names are reported at once."""
    assert {} == accounts.problems_of(login="Ali ce", email="a@b")
    assert {"login", "email"} == set(accounts.problems_of(login="a@b", email="a"))


def test_a_login_can_never_be_anothers_email() -> None:
    """A login cannot be another user's email, which would let one log in as the other or lock them
    out.
    """
    assert ["login"] == list(accounts.problems_of(login="bob@example.com", email="a@b"))
