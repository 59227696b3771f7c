"""Limits on what an org can have, which requests at once do not pass together."""

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import pytest

from arkloop.shared.catalog import http_tools, mcp_configs, worker_tools
from arkloop.shared.catalog.worker_tools import Definition
from arkloop.shared.config import Settings
from arkloop.shared.delivery import endpoints
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.storage.connections import Connections, Transaction
from tests.clients import User
from tests.waiting import in_parallel

ANY_ARGUMENTS = {"type": "object"}


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return replace(settings, encryption_key="k" * 32)


def endpoint(tx: Transaction, org_id: UUID, number: int) -> None:
    url = f"https://shop.example/{number}"
    endpoints.create(tx, org_id, url=url, description="", event_types=endpoints.EVENT_TYPES)


def http_tool(tx: Transaction, org_id: UUID, number: int) -> None:
    http_tools.create(
        tx,
        org_id,
        name=f"tool_{number}",
        description="A tool.",
        parameters=ANY_ARGUMENTS,
        url="https://shop.example/",
        idempotent=True,
        timeout_seconds=1.0,
        headers={"Authorization": "Bearer secret"},
    )


def mcp_server(tx: Transaction, org_id: UUID, number: int) -> None:
    url = "https://mcp.example/"
    mcp_configs.create(tx, org_id, name=f"server{number}", transport="streamable_http", url=url)


def worker_tool(tx: Transaction, org_id: UUID, number: int) -> None:
    name = f"tool_{number}"
    tool = Definition(name=name, description="A tool.", parameters=ANY_ARGUMENTS)
    worker_tools.register(tx, org_id, "desk", [tool])


def created(
    connections: Connections,
    org_id: UUID,
    create: Callable[[Transaction, UUID, int], None],
    number: int,
) -> bool:
    try:
        with connections.transaction() as tx:
            create(tx, org_id, number)
    except InvalidRequest as error:
        if "limit reached" not in str(error.details):
            raise
        return False
    return True


@pytest.mark.parametrize(
    ("module", "limit", "create"),
    [
        (endpoints, "MAX_ENDPOINTS", endpoint),
        (http_tools, "MAX_TOOLS", http_tool),
        (mcp_configs, "MAX_CONFIGS", mcp_server),
        (worker_tools, "MAX_TOOLS_OF_ORG", worker_tool),
    ],
    ids=["endpoints", "http-tools", "mcp-servers", "worker-tools"],
)
def test_requests_at_once_do_not_pass_a_limit(
    connections: Connections,
    alice: User,
    monkeypatch: pytest.MonkeyPatch,
    module: object,
    limit: str,
    create: Callable[[Transaction, UUID, int], None],
) -> None:
    """Each counts what the others create: of eight, three are accepted where three fit."""
    monkeypatch.setattr(module, limit, 3)

    made = in_parallel(8, lambda number: created(connections, alice.org_id, create, number))

    assert 3 == sum(made)


def test_workers_that_register_the_same_tools_at_once_count_once(
    connections: Connections, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit has room for what all of a pool's workers register when they start together."""
    monkeypatch.setattr(worker_tools, "MAX_TOOLS_OF_ORG", 1)

    assert all(in_parallel(8, lambda _: created(connections, alice.org_id, worker_tool, 0)))


@pytest.mark.parametrize("_round", range(6))
def test_creates_of_all_kinds_at_once_do_not_deadlock(
    connections: Connections, alice: User, _round: int
) -> None:
    """The first secret of an org makes its key, behind the lock of the org, whatever is created."""
    kinds = (http_tool, endpoint) * 3

    made = in_parallel(
        len(kinds), lambda number: created(connections, alice.org_id, kinds[number], number)
    )

    assert all(made)
