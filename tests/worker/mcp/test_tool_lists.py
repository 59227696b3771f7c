"""Lists of tools, in which a tool that cannot be used is a fault of its own."""

from typing import Any

import mcp_types as types
import pytest

from arkloop.worker.mcp.descriptions import Description, describe
from arkloop.worker.mcp.tool_lists import description_of, put_in_order

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}


def described(*tools: dict[str, Any]) -> list[Description]:
    result: dict[str, Any] = {"tools": [{"inputSchema": SCHEMA, **tool} for tool in tools]}
    put_in_order(result)
    return [description_of(tool) for tool in types.ListToolsResult(**result).tools]


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
