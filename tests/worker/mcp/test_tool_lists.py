"""Lists of tools, in which a tool that cannot be used is a fault of its own."""

from typing import Any

import mcp_types as types
import pytest

from arkloop.worker.mcp import McpFailed
from arkloop.worker.mcp.client import McpClient
from arkloop.worker.mcp.descriptions import Description, describe
from arkloop.worker.mcp.tool_lists import description_of, put_in_order
from tests.worker.mcp.lying_mcp_server import Lying, lying
from tests.worker.mcp.sdk_server import server_at

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}


def described(*tools: dict[str, Any]) -> list[Description]:
    result: dict[str, Any] = {"tools": [{"inputSchema": SCHEMA, **tool} for tool in tools]}
    put_in_order(result)
    return [description_of(tool, is_modern=True) for tool in types.ListToolsResult(**result).tools]


def test_a_tool_for_tasks_alone_has_a_problem() -> None:
    """It is listed as the server describes it, with the hash by which it may have been approved."""
    needs, may = ({"taskSupport": support} for support in ("required", "optional"))

    research, search = described(
        {"name": "research", "description": "Long.", "execution": needs},
        {"name": "search", "description": "Short.", "execution": may},
    )

    assert "It requires tasks, which are not supported." == research.problem
    expected = describe("research", "Long.", SCHEMA)
    assert (expected.hash, SCHEMA) == (research.hash, research.parameters)
    assert search.problem is None


def test_a_tool_for_tasks_alone_without_a_type_keeps_its_hash() -> None:
    """The hash is that of the schema as an object, whether the tool has a problem or not."""
    bare = {"name": "bare", "inputSchema": {"properties": {"n": {"type": "integer"}}}}

    [needs] = described({**bare, "execution": {"taskSupport": "required"}})
    [may] = described(bare)

    assert needs.problem is not None
    assert (may.hash, may.parameters) == (needs.hash, needs.parameters)


@pytest.mark.parametrize("execution", [None, {}, "required", ["taskSupport"], {"taskSupport": 1}])
def test_an_invalid_execution_is_passed_over(execution: Any) -> None:
    """A call does not need it, so that the tool stays usable."""
    [tool] = described({"name": "search", "execution": execution})

    assert tool.problem is None


#: Only a property of the schema itself, or of an object in it, may be sent as a header.
MISPLACED = {
    "type": "object",
    "properties": {
        "regions": {"type": "array", "items": {"type": "string", "x-mcp-header": "Region"}}
    },
}
PLACED = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}


def done(handler: Lying) -> None:
    given = str(handler.headers["Mcp-Param-Region"])
    handler.result(handler.message, {"content": [{"type": "text", "text": given}]})


@pytest.mark.processes
def test_a_tool_with_a_misplaced_header_has_a_problem(http_client: McpClient) -> None:
    """Clients of the protocol 2026-07-28 must not call it; others are called as usual."""
    tools = [{"name": "bad", "inputSchema": MISPLACED}, {"name": "good", "inputSchema": PLACED}]
    with lying(done, *tools, is_modern=True) as (url, _):
        server = server_at(url)
        found = {tool.name: tool for tool in http_client.tools(server)}
        assert ["lie", "bad", "good"] == list(found)
        assert "x-mcp-header" in (found["bad"].problem or "")
        expected = describe("bad", "", MISPLACED)
        assert (expected.hash, MISPLACED) == (found["bad"].hash, found["bad"].parameters)
        assert [None, None] == [found[name].problem for name in ("lie", "good")]

        with pytest.raises(McpFailed, match="can no longer be called"):
            http_client.call(server, "bad", {}, pinned=found["bad"].hash)
        sent = {"region": "north"}
        assert "north" == http_client.call(server, "good", sent, pinned=found["good"].hash)


@pytest.mark.processes
def test_a_misplaced_header_is_nothing_by_an_older_protocol(http_client: McpClient) -> None:
    """The key has no meaning there."""
    with lying(done, {"name": "bad", "inputSchema": MISPLACED}) as (url, _):
        server = server_at(url)
        _, bad = http_client.tools(server)
        assert describe("bad", "", MISPLACED) == bad

        assert "None" == http_client.call(server, "bad", {}, pinned=bad.hash)
