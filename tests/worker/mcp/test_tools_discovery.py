"""Discovery of tools: at silent, failing and outdated servers."""

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Row, update

from arkloop.shared.accounts import suspensions
from arkloop.shared.catalog import mcp_configs
from arkloop.shared.config import Settings
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.catalog import mcp_configs as configs_table
from arkloop.shared.times import now
from arkloop.worker.contract.outcomes import CancelRequested
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.mcp import discovery
from arkloop.worker.mcp.client import McpClient
from arkloop.worker.mcp.tools import McpTools, tools_of
from arkloop.worker.tools import ToolFailed
from tests.clients import User
from tests.waiting import eventually
from tests.worker.mcp.offered_tools import Named, call, says

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return replace(settings, mcp_stdio=True)


def outdate(
    connections: Connections, config_id: UUID, age: timedelta = mcp_configs.FRESH * 1.2
) -> None:
    """Record that it was asked six minutes ago, or at another time."""
    with connections.transaction() as tx:
        tx.sql.execute(
            update(configs_table)
            .where(configs_table.c.id == config_id)
            .values(tried_at=now() - age)
        )


def test_a_server_that_is_gone_costs_a_run_nothing(
    connections: Connections, offered: Callable[..., McpTools], named: Named
) -> None:
    """Its tools stay pinned and offered; only calls tell the model that they fail."""
    config_id = named("odd")
    offered("odd")
    with connections.transaction() as tx:
        row = update(configs_table).where(configs_table.c.id == config_id)
        tx.sql.execute(row.values(command=["no-such-program"]))

    with pytest.raises(ToolFailed, match="Program not found"):
        call(offered("odd").tools["double"], n=1)


def test_a_server_that_fails_is_not_asked_by_every_run(
    connections: Connections, alice: User, offered: Callable[..., McpTools]
) -> None:
    """The failure is stored, and believed for 30 seconds; an unknown name is no failure."""
    with connections.transaction() as tx:
        made = mcp_configs.create(
            tx, alice.org_id, name="none", transport="stdio", command=["no-such-program"]
        )

    assert {} == offered("none", "unknown").tools

    with connections.reading() as sql:
        [row] = mcp_configs.of_names(sql, alice.org_id, ["none"])
    assert "Program not found on this machine." == row.discovery_error
    assert not row.is_stale
    assert made.id == row.id


def test_a_server_of_a_suspended_org_is_not_asked(
    connections: Connections, alice: User, client: McpClient
) -> None:
    """Its discovery may have been due before; one after the org is resumed asks."""
    with connections.transaction() as tx:
        made = mcp_configs.create(
            tx, alice.org_id, name="none", transport="stdio", command=["no-such-program"]
        )
        suspensions.suspend(tx, alice.org_id, "Unpaid bills")

    def row() -> Row[Any]:
        with connections.reading() as sql:
            return mcp_configs.find(sql, alice.org_id, made.id)

    discovery.discover(connections, client, made.id)
    assert (None, None) == (row().tried_at, row().discovery_error)

    with connections.transaction() as tx:
        suspensions.resume(tx, alice.org_id)
    discovery.discover(connections, client, made.id)
    assert "Program not found on this machine." == row().discovery_error


def _waits(folder: Path, *files: Path) -> Path:
    """Keep the server from listing its tools before all of them are there; returns its folder."""
    (folder / "waits_for").write_text(" ".join(map(str, files)))
    return folder


def test_servers_are_asked_side_by_side(
    offered: Callable[..., McpTools], named: Named, tmp_path: Path
) -> None:
    """The silence of one does not add to that of another."""
    names = ["one", "two", "three", "four"]
    asked = [tmp_path / name / "asked" for name in names]
    for name in names:
        named(name, {"name": f"of-{name}"})
        _waits(tmp_path / name, *asked)

    assert {"of-one", "of-two", "of-three", "of-four"} <= set(offered(*names).tools)


def test_a_run_that_is_cancelled_while_servers_are_silent_stops_at_once(
    offered: Callable[..., McpTools], named: Named, tmp_path: Path
) -> None:
    """A cancelled run stops waiting for all silent servers at once."""
    names = ["one", "two", "three"]
    for name in names:
        named(name)
        _waits(tmp_path / name, tmp_path / "never")
    stop = StopSignal()
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            offered(*names, stop=stop)
        except BaseException as error:
            raised.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: all((tmp_path / name / "asked").exists() for name in names))

    stop.set(CancelRequested())

    asking.join(15)
    assert [CancelRequested] == [type(error) for error in raised]


def test_no_run_waits_for_a_server_that_has_failed(
    connections: Connections, offered: Callable[..., McpTools], named: Named, tmp_path: Path
) -> None:
    """It is asked again after 30 seconds, beside the run: what it tells is for later ones."""
    config_id = named("odd")
    with connections.transaction() as tx:
        mcp_configs.record_failure(
            tx, config_id, "The server did not respond within 20 s.", as_of=None
        )
    outdate(connections, config_id, mcp_configs.RETRY * 1.2)
    gate = tmp_path / "gate"
    _waits(tmp_path / "odd", gate)

    assert {} == offered("odd").tools

    with connections.reading() as sql:
        row = mcp_configs.of_id(sql, config_id)
    assert row is not None and row.is_stale, "it has waited for what the server says"
    gate.touch()
    eventually(lambda: "double" in offered("odd").tools)


def test_an_old_discovery_is_renewed_beside_the_run(
    connections: Connections, offered: Callable[..., McpTools], named: Named, tmp_path: Path
) -> None:
    """It does not wait for the server; a run soon afterwards has the news."""
    config_id = named("odd")
    offered("odd")
    says(tmp_path / "odd", {"name": "double", "description": "Other.", "instead": True})
    outdate(connections, config_id)

    assert "refuse" in offered("odd").tools

    eventually(lambda: "double" not in offered("odd").tools)
    with connections.reading() as sql:
        row = mcp_configs.of_id(sql, config_id)
    assert row is not None and not row.is_stale


def test_a_run_that_stops_does_not_wait_for_a_discovery(
    offered: Callable[..., McpTools], named: Named
) -> None:
    """A stopping run leaves the discovery at once, with its own reason."""
    named("odd")
    stop = StopSignal()
    stop.set(CancelRequested())

    with pytest.raises(CancelRequested):
        offered("odd", stop=stop)


def test_another_orgs_server_is_none(
    connections: Connections, client: McpClient, register: Callable[..., User], named: Named
) -> None:
    """Names are of one org."""
    named("odd")
    mallory = register()
    context = StopSignal()

    found = tools_of(
        connections, client, mallory.org_id, ["odd"], reserved_names=(), context=context
    )

    assert {} == found.tools
