"""Clients of MCP, and the servers that the tests in this folder call."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest

from arkloop.shared.catalog import mcp_configs
from arkloop.shared.storage.connections import Connections
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.mcp.client import McpClient
from arkloop.worker.mcp.discovery import server_of
from arkloop.worker.mcp.server import Server
from arkloop.worker.mcp.tools import McpTools, tools_of
from tests.clients import User
from tests.mcp_configs import oauth_config
from tests.worker.mcp.odd_server import Odd
from tests.worker.mcp.offered_tools import ODD, Named, says
from tests.worker.mcp.sdk_server import META, Sdk, server_at


@pytest.fixture(scope="module")
def client() -> Iterator[McpClient]:
    """A sidecar for all tests that do not kill it."""
    # Tests that do not run as root read the environment and the memory of its processes.
    made = McpClient(stdio=True, core_dumps=True)
    yield made
    made.close()


@pytest.fixture
def odd(client: McpClient, tmp_path: Path) -> Odd:
    return Odd(client, tmp_path)


@pytest.fixture
def named(connections: Connections, alice: User, tmp_path: Path) -> Named:
    def name(name: str, *tools: dict[str, Any]) -> UUID:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        says(folder, *tools)
        command = [sys.executable, "-I", "-S", str(ODD), str(folder)]
        with connections.transaction() as tx:
            made = mcp_configs.create(
                tx, alice.org_id, name=name, transport="stdio", command=command
            )
        return cast(UUID, made.id)

    return name


@pytest.fixture
def offered(connections: Connections, client: McpClient, alice: User) -> Callable[..., McpTools]:
    """Call it with the names of servers for what a run of alice's org gets."""

    def ask(*names: str, taken: tuple[str, ...] = (), stop: StopSignal | None = None) -> McpTools:
        context = stop or StopSignal()
        return tools_of(
            connections, client, alice.org_id, names, reserved_names=taken, context=context
        )

    return ask


@pytest.fixture(scope="module")
def http_client() -> Iterator[McpClient]:
    """The operator allows loopback over IPv4."""
    made = McpClient(allowed_networks=["127.0.0.0/8"])
    yield made
    made.close()


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sdk]:
    server = Sdk(tmp_path_factory.mktemp("sdk"))
    yield server
    server.end()


@pytest.fixture
def call(http_client: McpClient, sdk: Sdk) -> Callable[..., str]:
    """Call it for the answer of a tool of the official server."""
    server = server_at(sdk.url, Authorization="Bearer of-this-server")
    hashes = {tool.name: tool.hash for tool in http_client.tools(server)}

    def ask(tool: str, stop: StopSignal | None = None, **arguments: Any) -> str:
        context = stop or StopSignal()
        return http_client.call(
            server, tool, arguments, pinned=hashes[tool], meta=META, context=context
        )

    return ask


@pytest.fixture
def server(connections: Connections, alice: User) -> Server:
    """A server of Alice's org that requires OAuth."""
    config_id = oauth_config(connections, alice.org_id)
    with connections.reading() as sql:
        row = mcp_configs.of_id(sql, config_id)
    assert row is not None
    return server_of(connections.settings, row)
