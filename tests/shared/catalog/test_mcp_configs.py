"""The knowledge of an org's MCP servers, which requests and workers change at once."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from sqlalchemy import update

from arkloop.shared.catalog import mcp_configs, mcp_secrets
from arkloop.shared.config import Settings
from arkloop.shared.errors import McpToolChanged
from arkloop.shared.ids import new_id
from arkloop.shared.security.encryption import CannotOpen
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.catalog import mcp_configs as configs_table
from arkloop.shared.times import now
from tests.clients import Register, User
from tests.waiting import in_parallel

URL = "https://mcp.example.com/mcp"


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return replace(settings, encryption_key="k" * 32)


@dataclass(frozen=True)
class Described:
    """A tool that a worker has found."""

    name: str
    hash: str
    description: str = "A tool."
    parameters: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


def create(connections: Connections, user: User, **fields: Any) -> Any:
    with connections.transaction() as tx:
        return mcp_configs.create(
            tx, user.org_id, name="files", transport="streamable_http", url=URL, **fields
        )


def offered(connections: Connections, config: Any) -> list[str]:
    with connections.reading() as sql:
        return [row.name for row in mcp_configs.offered(sql, [config.id], limit=9)]


def record(connections: Connections, config: Any, *tools: Described) -> None:
    with connections.transaction() as tx:
        mcp_configs.record(tx, config.id, tools, as_of=None)


def test_of_discoveries_at_once_only_one_is_the_first(
    connections: Connections, alice: User
) -> None:
    """Eight workers ask a server that tells each another tool: one of them is approved."""
    config = create(connections, alice)

    in_parallel(8, lambda n: record(connections, config, Described(f"tool-{n}", str(n) * 64)))

    with connections.reading() as sql:
        known = mcp_configs.tools(sql, alice.org_id, config.id, limit=200, after_name=None)
    assert 1 == len([row for row in known if row.approved_hash is not None])


def test_an_approval_meets_what_it_has_read_or_nothing(
    connections: Connections, alice: User
) -> None:
    """A discovery at the same moment comes first, and refuses it, or later, and undoes it."""
    config = create(connections, alice)
    record(connections, config)
    record(connections, config, Described("tool", "1" * 64))

    def approve(number: int) -> str:
        if number % 2:
            record(connections, config, Described("tool", "2" * 64))
            return "recorded"
        try:
            with connections.transaction() as tx:
                mcp_configs.approve(tx, alice.org_id, config.id, {"tool": "1" * 64})
        except McpToolChanged:
            return "refused"
        return "approved"

    answers = in_parallel(8, approve)

    assert {"recorded", "approved", "refused"} >= set(answers)
    assert [] == offered(connections, config)


def test_a_failure_leaves_the_tools_as_they_were(connections: Connections, alice: User) -> None:
    """A server that is away for a while loses nothing."""
    config = create(connections, alice)
    record(connections, config, Described("tool", "1" * 64))

    with connections.transaction() as tx:
        mcp_configs.record_failure(tx, config.id, "It was away.", as_of=None)

    assert ["tool"] == offered(connections, config)
    with connections.reading() as sql:
        assert "It was away." == mcp_configs.find(sql, alice.org_id, config.id).discovery_error


def test_what_is_found_of_a_server_that_is_gone_is_dropped(
    connections: Connections, alice: User
) -> None:
    """An admin may forget it while a worker asks it."""
    config = create(connections, alice)
    with connections.transaction() as tx:
        mcp_configs.remove(tx, alice.org_id, config.id)

    record(connections, config, Described("tool", "1" * 64))

    with connections.reading() as sql:
        assert mcp_configs.of_id(sql, config.id) is None
    assert [] == offered(connections, config)


def test_what_is_found_of_a_server_before_its_config_was_changed_is_dropped(
    connections: Connections, alice: User
) -> None:
    """It was slow; or the address was wrong, and is right now."""
    config = create(connections, alice)
    with connections.transaction() as tx:
        url = "https://mcp.example.com/right"
        changed, _ = mcp_configs.change(tx, alice.org_id, config.id, {"url": url})

    with connections.transaction() as tx:
        found = [Described("old", "1" * 64)]
        mcp_configs.record(tx, config.id, found, as_of=config.updated_at)
    assert [] == offered(connections, config)
    with connections.transaction() as tx:
        found = [Described("new", "2" * 64)]
        mcp_configs.record(tx, config.id, found, as_of=changed.updated_at)
        mcp_configs.record_failure(tx, config.id, "Silent.", as_of=config.updated_at)

    assert ["new"] == offered(connections, config)
    with connections.reading() as sql:
        assert mcp_configs.find(sql, alice.org_id, config.id).discovery_error is None


def test_a_discovery_is_believed_for_five_minutes(connections: Connections, alice: User) -> None:
    """A discovery that is older, or was never made, is stale."""
    config = create(connections, alice)

    def is_stale() -> bool:
        with connections.reading() as sql:
            [row] = mcp_configs.of_names(sql, alice.org_id, ["files"])
        return bool(row.is_stale)

    assert is_stale()
    record(connections, config)
    assert not is_stale()
    with connections.transaction() as tx:
        old = now() - mcp_configs.FRESH * 1.01
        tx.sql.execute(
            update(configs_table).where(configs_table.c.id == config.id).values(tried_at=old)
        )
    assert is_stale()


def test_headers_open_in_their_org_only(
    connections: Connections, alice: User, register: Register
) -> None:
    """A ciphertext that is copied into another org's row is worth nothing there."""
    create(connections, alice, headers={"Authorization": "Bearer a"})
    other = create(connections, register())
    with connections.reading() as sql:
        [row] = mcp_configs.of_names(sql, alice.org_id, ["files"])

    with connections.transaction() as tx:
        tx.sql.execute(
            update(configs_table)
            .where(configs_table.c.id == other.id)
            .values(headers_encrypted=row.headers_encrypted)
        )

    assert {"Authorization": "Bearer a"} == mcp_secrets.headers_of(connections.settings, row)
    with connections.reading() as sql:
        copied = mcp_configs.of_id(sql, other.id)
    assert copied is not None
    with pytest.raises(CannotOpen):
        mcp_secrets.headers_of(connections.settings, copied)


def test_an_org_has_a_hundred_servers(connections: Connections, alice: User) -> None:
    """An org can have 100 servers and no more."""
    create(connections, alice)
    with connections.transaction() as tx:
        for number in range(mcp_configs.MAX_CONFIGS - 1):
            values = {"id": new_id(), "org_id": alice.org_id, "name": f"n{number}", "url": URL}
            tx.sql.execute(configs_table.insert().values(**values, transport="streamable_http"))

    answer = alice.post("/v1/mcp-configs", {"name": "one-more", "url": URL})

    assert 422 == answer.status_code
    assert ["name"] == list(answer.json["details"])
