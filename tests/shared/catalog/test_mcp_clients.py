"""The client of a page, as it is found among those of what people have granted."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from arkloop.shared.catalog import mcp_access, mcp_clients
from arkloop.shared.config import Settings
from arkloop.shared.storage.connections import Connections
from tests.clients import User
from tests.mcp_configs import oauth_config


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return replace(settings, public_url="https://runs.example.com")


@pytest.fixture
def config_id(connections: Connections, alice: User) -> UUID:
    """A server of Alice's org that requires OAuth."""
    return oauth_config(connections, alice.org_id)


def grant(number: int) -> dict[str, Any]:
    return {"id": str(number), "obtained_at": 1_000_000.0 + number}


def test_the_client_that_the_operator_is_asked_with_takes_the_place_of_another(
    connections: Connections, alice: User, config_id: UUID
) -> None:
    """The authorization server has forgotten the one of the grant; with a page for the same one
    the grant's is used, with its issuer.
    """
    of, at = (alice.org_id, config_id, mcp_access.OPERATOR), ["https://login", "", "first"]
    first, second = {"client_id": "first"}, {"client_id": "second"}
    with connections.transaction() as tx:
        mcp_access.expect_grant(tx, *of)
        mcp_access.store_grant(tx, *of, {**grant(1), "client": first, "at": at})

    for client, expected in ((first, {**first, "issuer": at[0]}), (second, second)):
        with connections.transaction() as tx:
            tx.sql.execute(text("DELETE FROM mcp_authorizations"))
            made = {"url": "https://login/1", "state": "1", "client": client}
            mcp_access.request(tx, *of, None, made)
            found = mcp_clients.client_of(tx.sql, connections.settings, alice.org_id, config_id)
        assert expected == found


@pytest.mark.parametrize(
    ("of_operator", "of_page", "of_end_user", "expected"),
    [
        (1, None, 2, "end_user"),
        (None, None, 2, "end_user"),
        (2, None, 1, "operator"),
        (None, None, None, "operator"),
        (1, 2, 3, "end_user"),
        (1, 3, 2, "page"),
    ],
)
def test_the_client_of_an_end_user_is_used_if_it_is_the_newest(
    connections: Connections,
    alice: User,
    config_id: UUID,
    of_operator: int | None,
    of_page: int | None,
    of_end_user: int | None,
    expected: str,
) -> None:
    """The authorization server has refused the operator's for a code. Before, none had a time of
    its registration.
    """
    of = (alice.org_id, config_id)

    def client(name: str, number: int | None) -> dict[str, Any]:
        at = {} if number is None else {"client_id_issued_at": number}
        return {"client_id": name, **at}

    def add(owner: str, number: int, client: dict[str, Any]) -> None:
        with connections.transaction() as tx:
            mcp_access.expect_grant(tx, *of, owner)
            made = {**grant(number), "client": client, "at": [f"https://{owner}", "", ""]}
            mcp_access.store_grant(tx, *of, owner, made)

    add(mcp_access.OPERATOR, 9, client("operator", of_operator))
    add("end_user:b", 3, client("earlier", 0))
    add("end_user:a", 4, client("end_user", of_end_user))
    add("end_user:b", 5, client("earlier", 0))  # refreshed
    add("end_user:d", 6, client("of an earlier release", 1_700_000_000_000))  # not our clock's
    with connections.transaction() as tx:
        mcp_access.expect_grant(tx, *of, "end_user:c")  # a code that is not exchanged yet
        if of_page is not None:
            made = {"url": "https://login/1", "client": client("page", of_page)}
            made["state"] = str(config_id)
            mcp_access.request(tx, *of, mcp_access.OPERATOR, None, made)
        found = mcp_clients.client_of(tx.sql, connections.settings, *of)
    assert found is not None
    assert expected == found["client_id"]
    issuers = {"end_user": "https://end_user:a", "operator": "https://operator"}
    assert issuers.get(expected) == found.get("issuer")
