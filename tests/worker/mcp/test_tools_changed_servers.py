"""Servers whose config is changed or deleted while runs have their tools."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest

from arkloop.shared.catalog import mcp_configs
from arkloop.shared.config import Settings
from arkloop.shared.storage.connections import Connections
from arkloop.worker.contract.input_requests import InputRequired, Replies
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.mcp.client import McpClient
from arkloop.worker.mcp.tools import McpTools, tools_of
from arkloop.worker.tools import ToolFailed
from tests.clients import User
from tests.worker.mcp.lying_mcp_server import Lying, lying
from tests.worker.mcp.offered_tools import INFO, Named, call

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return replace(settings, mcp_stdio=True, allowed_networks=("127.0.0.0/8",))


def _echo(handler: Lying) -> None:
    """Answer with the server that a request was sent to, and its key."""
    said = f"{handler.headers['Host']} {handler.headers['X-Key']}"
    handler.result(handler.message, {"content": [{"type": "text", "text": said}]})


def _change(connections: Connections, alice: User, config_id: UUID, **changes: Any) -> None:
    with connections.transaction() as tx:
        mcp_configs.change(tx, alice.org_id, config_id, changes)


def test_a_changed_address_applies_to_runs_that_have_the_tools(
    connections: Connections, http_client: McpClient, alice: User
) -> None:
    """Changed headers do, too, and none of them is sent to the former address."""
    with lying(_echo) as (old, _), lying(_echo) as (new, _):
        at = {"transport": "streamable_http", "url": old, "headers": {"X-Key": "first"}}
        with connections.transaction() as tx:
            config = mcp_configs.create(tx, alice.org_id, name="s", **at)
        of = (connections, http_client, alice.org_id, ["s"])
        tool = tools_of(*of, reserved_names=(), context=StopSignal()).tools["lie"]

        assert f"{urlsplit(old).netloc} first" == call(tool)
        _change(connections, alice, config.id, headers={"X-Key": "second"})
        assert f"{urlsplit(old).netloc} second" == call(tool)
        _change(connections, alice, config.id, url=new, headers={"X-Key": "third"})
        assert f"{urlsplit(new).netloc} third" == call(tool)


def test_a_deleted_server_is_not_called(
    connections: Connections, alice: User, offered: Callable[..., McpTools], named: Named
) -> None:
    """A run that has its tools reports the deletion to the model."""
    config_id = named("odd")
    tool = offered("odd").tools["double"]
    assert "4" == call(tool, n=2)
    with connections.transaction() as tx:
        mcp_configs.remove(tx, alice.org_id, config_id)

    with pytest.raises(ToolFailed, match=r"^Not called: the server 'odd' was deleted\.$"):
        call(tool, n=2)


@pytest.mark.parametrize("is_deleted", [True, False])
def test_a_call_that_is_held_continues_where_it_began(
    connections: Connections,
    alice: User,
    offered: Callable[..., McpTools],
    named: Named,
    is_deleted: bool,
) -> None:
    """The server has begun it and waits for the reply: the model reads the result."""
    config_id = named("odd")
    tool = offered("odd").tools["ask"]
    with pytest.raises(InputRequired) as asked:
        call(tool, n=1)
    with connections.transaction() as tx:
        if is_deleted:
            mcp_configs.remove(tx, alice.org_id, config_id)
        else:
            mcp_configs.change(tx, alice.org_id, config_id, {"command": ["/nonexistent"]})

    reply = {"action": "accept", "content": {"seats": 3}}
    [request] = asked.value.asked
    replies = Replies({request["key"]: reply}, asked.value.state, asked.value.held)
    result = tool(StopSignal(), replace(INFO, replies=replies), {"n": 1})

    assert [reply] == json.loads(str(result))
