"""The erasure of a user for whose access to an MCP server runs in shared threads wait."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import select

from arkloop.shared.accounts import erasure
from arkloop.shared.catalog import mcp_access, mcp_configs
from arkloop.shared.config import Settings
from arkloop.shared.ids import new_id
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.runs import inputs
from arkloop.shared.times import rfc3339
from tests.clients import Register, User

#: `waiting(user, *config_ids)`
Waiting = Callable[..., UUID]


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return replace(settings, public_url="https://runs.example.com")


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for the end of access that are over at once."""
    monkeypatch.setattr(erasure, "ACCESS_ENDS_SECONDS", 0)


@pytest.fixture
def config_ids(connections: Connections, alice: User) -> list[UUID]:
    """Two servers of Alice's org that require OAuth."""
    how = {"transport": "streamable_http", "url": "https://a.b/", "oauth": {}}
    with connections.transaction() as tx:
        made = [mcp_configs.create(tx, alice.org_id, name=name, **how) for name in "vw"]
    return [config.id for config in made]


@pytest.fixture
def waiting(connections: Connections, make_run: Callable[..., UUID]) -> Waiting:
    """Call it for a run in a shared thread that waits for a visit of the last server's page.

    It has an open page for each server; without one, the server itself has sent the address.
    """

    def wait(user: User, *config_ids: UUID) -> UUID:
        states = [str(new_id()) for _ in config_ids] or [str(new_id())]
        urls = [f"https://login.example.com/?client_id=c&state={state}" for state in states]
        expires_at = datetime.now(UTC) + timedelta(hours=1)
        pending = {"request_id": states[-1], "kind": "authorization", "prompt": "?"}
        run_id = make_run(
            user,
            user.thread(),
            RunState.WAITING,
            pending_input={**pending, "url": urls[-1], "expires_at": rfc3339(expires_at)},
            input_expires_at=expires_at,
        )
        owner = mcp_access.owner_of(None, user.id)
        with connections.transaction() as tx:
            for config_id, url, state in zip(config_ids, urls, states, strict=False):
                made = {"url": url, "state": state}
                mcp_access.request(tx, user.org_id, config_id, owner, run_id, made)
        return run_id

    return wait


def test_runs_that_wait_for_an_erased_user_continue_without_access(
    connections: Connections,
    alice: User,
    register: Register,
    config_ids: list[UUID],
    waiting: Waiting,
) -> None:
    """Their pages are closed as if declined, also without the key; other runs wait on."""
    bob = register(org_of=alice, role="member")
    resumed = [waiting(bob, config_ids[0]), waiting(bob, *config_ids)]
    others = [waiting(alice, config_ids[0]), waiting(bob)]

    without_key = replace(connections.settings, encryption_key=None)
    erasure.erase_user(replace(connections, settings=without_key), bob.id)

    given = select(inputs.c.run_id, inputs.c.content)
    with connections.reading() as sql:
        replies = sql.execute(given.where(inputs.c.run_id.in_([*resumed, *others]))).all()
    assert {(run_id, '{"action": "decline"}') for run_id in resumed} == {*map(tuple, replies)}
    shown = [alice.get(f"/v1/runs/{run_id}").json["status"] for run_id in (*resumed, *others)]
    assert ["running"] * 2 + ["waiting_for_input"] * 2 == shown
