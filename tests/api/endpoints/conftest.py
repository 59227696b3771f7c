"""Tools that a server has, for the tests of MCP's endpoints."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from arkloop.shared.catalog import mcp_configs
from arkloop.shared.storage.connections import Connections
from tests.api.endpoints.described_mcp import Described, Found


@pytest.fixture
def found(connections: Connections) -> Found:
    def record(config: dict[str, Any], *tools: Described) -> None:
        described = [replace(tool, parameters={"type": "object"}) for tool in tools]
        with connections.transaction() as tx:
            mcp_configs.record(tx, UUID(config["id"]), described, as_of=None)

    return record
