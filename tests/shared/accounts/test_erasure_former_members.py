"""The erasure of an end user whose client tokens somebody has issued who is no member any more."""

from datetime import timedelta

import pytest

from arkloop.shared.accounts import erasure, members
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from tests.clients import Register, User
from tests.end_users import ANN, end_user
from tests.shared.accounts.test_erasure import places_of


@pytest.mark.parametrize("how", ["removed", "erased"])
def test_no_response_to_an_end_user_of_a_former_member_is_left(
    connections: Connections,
    alice: User,
    register: Register,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """The member has issued the token with their login, and never had an API key."""
    monkeypatch.setattr(erasure, "ACCESS_ENDS_SECONDS", 0)
    word = f"word-{new_id().hex}"
    bob = register(org_of=alice, role="admin")
    thread_id = end_user(alice, ANN).thread()
    once = {"Idempotency-Key": "k"}
    message = {"content": f"I am {word}."}
    sent = end_user(bob, ANN).post(f"/v1/threads/{thread_id}/messages", message, headers=once)
    assert 201 == sent.status_code
    assert "idempotency_keys" in places_of(connections, word)
    if how == "removed":
        assert 204 == alice.delete(f"/v1/orgs/{alice.org_id}/members/{bob.id}").status_code
    else:
        erasure.erase_user(connections, bob.id)

    erasure.erase_end_user(connections, alice.org_id, ANN)

    assert [] == places_of(connections, word)


def test_members_who_left_long_ago_are_not_asked_for(
    connections: Connections, alice: User, register: Register
) -> None:
    """There are ever more of them, and each is looked for in each thread."""
    bob = register(org_of=alice)
    assert 204 == alice.delete(f"/v1/orgs/{alice.org_id}/members/{bob.id}").status_code

    with connections.reading() as sql:
        recent = members.now_and_lately(sql, alice.org_id, timedelta(hours=1))
        now = members.now_and_lately(sql, alice.org_id, timedelta())

    assert ({alice.id, bob.id}, {alice.id}) == (recent, now)
