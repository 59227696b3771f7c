"""Grants and requests for access, as workers and requests of the API change them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from arkloop.shared.catalog import mcp_access, mcp_configs, mcp_owners
from arkloop.shared.config import Settings
from arkloop.shared.errors import McpStateInvalid
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections, Transaction
from tests.clients import User
from tests.mcp_configs import oauth_config
from tests.waiting import eventually, in_parallel

OWNER = "end_user:a"


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return replace(settings, public_url="https://runs.example.com")


@pytest.fixture
def config_id(connections: Connections, alice: User) -> UUID:
    """A server of Alice's org that requires OAuth."""
    return oauth_config(connections, alice.org_id)


def grant(number: int) -> dict[str, Any]:
    return {"id": str(number), "obtained_at": 1_000_000.0 + number, "client": None}


def test_the_newest_grant_stays(connections: Connections, alice: User, config_id: UUID) -> None:
    """Workers store grants in whatever order they come; each owner has one. One that cannot be
    decrypted, since its key is gone or it is another org's, counts as none.
    """
    for number in (2, 3, 1):
        with connections.transaction() as tx:
            mcp_access.expect_grant(tx, alice.org_id, config_id, OWNER)
            mcp_access.store_grant(tx, alice.org_id, config_id, OWNER, grant(number))

    with connections.reading() as sql:
        of = (sql, connections.settings, alice.org_id, config_id)
        assert grant(3) == mcp_access.grant_of(*of, OWNER)
        assert None is mcp_access.grant_of(*of, "end_user:b")
        assert None is mcp_access.grant_of(sql, of[1], new_id(), config_id, OWNER)
        lost = replace(connections.settings, encryption_key="k" * 32)
        assert None is mcp_access.grant_of(sql, lost, alice.org_id, config_id, OWNER)


def test_a_grant_of_a_server_that_is_gone_is_not_stored(
    connections: Connections, alice: User
) -> None:
    """Its config was deleted while it was asked."""
    with connections.transaction() as tx:
        mcp_access.store_grant(tx, alice.org_id, new_id(), OWNER, grant(1))


def test_a_grant_for_a_former_address_does_not_replace_one_for_the_new(
    connections: Connections, alice: User, config_id: UUID
) -> None:
    """A call in progress gets it at the former address after people have authorized the new one."""
    of = (alice.org_id, config_id, OWNER)
    moved = {**grant(1), "server_url": "https://c.d/"}
    with connections.transaction() as tx:
        mcp_configs.change(tx, alice.org_id, config_id, {"url": "https://c.d/"})
        mcp_access.expect_grant(tx, *of)

    late = {**grant(2), "server_url": "https://a.b/"}
    for given, expected in ((late, None), (moved, moved), (late, moved), (grant(3), grant(3))):
        with connections.transaction() as tx:
            mcp_access.store_grant(tx, *of, given)
            assert expected == mcp_access.grant_of(tx.sql, connections.settings, *of)


def disconnect(tx: Transaction, alice: User, config_id: UUID) -> None:
    mcp_access.forget(tx, config_id, OWNER)


def erase(tx: Transaction, alice: User, config_id: UUID) -> None:
    mcp_owners.forget(tx, OWNER, org_id=alice.org_id)


def move(tx: Transaction, alice: User, config_id: UUID) -> None:
    mcp_configs.change(tx, alice.org_id, config_id, {"url": "https://c.d/"})


def rename(tx: Transaction, alice: User, config_id: UUID) -> None:
    mcp_configs.change(tx, alice.org_id, config_id, {"name": "w"})


Change = Callable[[Transaction, User, UUID], None]
CHANGES = pytest.mark.parametrize(
    ("change", "is_kept"), [(disconnect, False), (erase, False), (move, False), (rename, True)]
)


@CHANGES
def test_a_token_that_is_refreshed_meanwhile_does_not_bring_access_back(
    connections: Connections, alice: User, config_id: UUID, change: Change, is_kept: bool
) -> None:
    """A call that began with the grant ends after the change; a renamed server keeps the token."""
    of = (alice.org_id, config_id, OWNER)
    with connections.transaction() as tx:
        mcp_access.expect_grant(tx, *of)
        mcp_access.store_grant(tx, *of, grant(1))
    with connections.transaction() as tx:
        change(tx, alice, config_id)
    with connections.transaction() as tx:
        mcp_access.store_grant(tx, *of, grant(2))
        expected = grant(2) if is_kept else None
        assert expected == mcp_access.grant_of(tx.sql, connections.settings, *of)


@CHANGES
def test_a_code_that_is_exchanged_meanwhile_does_not_bring_access_back(
    connections: Connections, alice: User, config_id: UUID, change: Change, is_kept: bool
) -> None:
    """The change comes while the code is taken, or exchanged; a code counts as no grant."""
    of, run_id = (alice.org_id, config_id, OWNER), new_id()
    with connections.transaction() as tx:
        mcp_access.request(tx, *of, run_id, {"url": "https://login/1", "state": str(run_id)})
    with connections.transaction() as tx:
        mcp_access.answer(tx, str(run_id), "the code", None)

    def change_meanwhile() -> None:
        with connections.transaction() as tx:
            change(tx, alice, config_id)

    with ThreadPoolExecutor(1) as thread:
        with connections.transaction() as tx:
            made = mcp_access.take_answered(tx, *of, run_id)
            assert "the code" == (made or {}).get("code")
            changed = thread.submit(change_meanwhile)
            eventually(lambda: changed.done() or is_waited_for(connections))
            assert is_kept or not changed.done()
        changed.result(30)
    for number, expected in ((0, None), (1, grant(1) if is_kept else None)):
        with connections.transaction() as tx:
            if number:
                mcp_access.store_grant(tx, *of, grant(number))
            assert expected == mcp_access.grant_of(tx.sql, connections.settings, *of)


def is_waited_for(connections: Connections) -> bool:
    query = (
        "SELECT count(*) > 0 FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    with connections.reading() as sql:
        return bool(sql.scalar(text(query)))


def test_a_run_has_one_open_page_for_a_server(
    connections: Connections, alice: User, config_id: UUID
) -> None:
    """Calls that ask at once get the same one; another run has one of its own, by another state."""
    run_id = new_id()

    def request(number: int, run_id: UUID = run_id) -> str | None:
        made = {"url": f"https://login/{number}", "state": f"s{number}"}
        with connections.transaction() as tx:
            return mcp_access.request(tx, alice.org_id, config_id, OWNER, run_id, made)

    [page] = set(in_parallel(8, request))
    assert page is not None
    assert "https://login/9" == request(9, new_id())
    assert request(9, new_id()) is None

    number = page.rpartition("/")[2]
    with connections.transaction() as tx:
        assert page == mcp_access.answer(tx, f"s{number}", None, None)[1]
    assert "https://login/10" == request(10)
    with connections.transaction() as tx:
        tx.sql.execute(text("UPDATE mcp_authorizations SET expires_at = now()"))
    with connections.transaction() as tx, pytest.raises(McpStateInvalid):
        mcp_access.answer(tx, "s10", "code", None)
    assert "https://login/11" == request(11)
