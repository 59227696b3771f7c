"""Lists of tools, read so that a tool which is not valid MCP is a fault of its own.

The SDK refuses a list as a whole for one such tool. So a list is put in order before
the SDK reads it: what nobody needs of a tool is left out, and a tool that is still
not valid is replaced by one that is, and that says what is wrong.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import mcp_types as types
from mcp import Client
from mcp.shared.inbound import find_invalid_x_mcp_header
from mcp_types.methods import validate_server_result
from mcp_types.version import LATEST_HANDSHAKE_VERSION, MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from arkloop.shared.events.plain import clean
from arkloop.worker.mcp import McpFailed
from arkloop.worker.mcp.descriptions import MAX_TOOLS, Description, describe

#: Of one list; a server could give pages for ever.
MAX_PAGES = 64
_USED = ("name", "description", "inputSchema")
#: What this module adds to a tool's `_meta`; that of the server is left out.
_PROBLEM = "problem"
_MODERN_PROBLEM = "modern_problem"  # by the protocol 2026-07-28 alone
_SCHEMA = "schema"
_MAX_PROBLEM_CHARACTERS = 500
_NEEDS_TASKS = "It requires tasks, which are not supported."


async def list_tools(client: Client) -> list[Description]:
    """Request all pages of a server's list. Raises: McpFailed."""
    found: list[Description] = []
    cursor: str | None = None
    is_modern = client.protocol_version in MODERN_PROTOCOL_VERSIONS
    for _ in range(MAX_PAGES):
        page = await client.session.list_tools(params=types.PaginatedRequestParams(cursor=cursor))
        found += [description_of(tool, is_modern=is_modern) for tool in page.tools]
        if len(found) > MAX_TOOLS:
            raise McpFailed(f"The server offers more than {MAX_TOOLS} tools.")
        cursor = page.next_cursor
        if not cursor:  # some write an empty one where none follows; sent, it means the first page
            return found
    raise McpFailed(f"The server's list of tools has more than {MAX_PAGES} pages.")


def by_name(found: Iterable[Description]) -> dict[str, Description]:
    """Return the tools by their names, with a `problem` where two have the same."""
    tools: dict[str, Description] = {}
    for tool in found:
        if tool.name in tools:
            # Which of them a call would reach is the server's secret.
            first = tools[tool.name]
            tool = Description(
                first.name, first.description, first.parameters, first.hash, "Duplicate tool name."
            )
        tools[tool.name] = tool
    return tools


def description_of(tool: types.Tool, *, is_modern: bool) -> Description:
    """Describe a tool of a normalized list as its server gave it."""
    name, text = tool.name, tool.description or ""
    if tool.meta is None:
        return describe(name, text, tool.input_schema)
    given = tool.meta[_SCHEMA]
    described = describe(name, text, given)
    parameters = described.parameters if isinstance(given, Mapping) else {}
    problem = described.problem or tool.meta[_PROBLEM]
    if problem is None and is_modern:
        problem = tool.meta[_MODERN_PROBLEM]
    return replace(described, parameters=parameters, problem=problem)


def put_in_order(result: dict[str, Any]) -> None:
    """Replace the tools of a result, if it has any, by those that the SDK takes."""
    tools = result.get("tools")
    if isinstance(tools, list):
        # One more than are allowed is enough to refuse them all.
        judged = [_judged(tool, number) for number, tool in enumerate(tools[: MAX_TOOLS + 1], 1)]
        result["tools"] = judged


def _judged(given: Any, number: int) -> dict[str, Any]:
    tool = {key: given[key] for key in _USED if key in given} if isinstance(given, dict) else {}
    schema = tool.get("inputSchema")
    if isinstance(schema, dict) and "type" not in schema:
        # Arguments are an object in any case, and some servers say so little of no arguments.
        tool["inputSchema"] = {"type": "object", "properties": {}, **schema}
    problem = _problem(tool) or (_NEEDS_TASKS if _needs_tasks(given) else None)
    # The SDK leaves out the tools that have one, but only it knows the protocol.
    modern_problem = find_invalid_x_mcp_header(tool.get("inputSchema"))
    if problem is None and modern_problem is None:
        return tool
    name, text = tool.get("name"), tool.get("description")
    return {
        "name": name if isinstance(name, str) else f"(number {number} of the list)",
        "description": text if isinstance(text, str) else "",
        "inputSchema": {"type": "object"},
        "_meta": {
            _PROBLEM: problem,
            _MODERN_PROBLEM: modern_problem and _not_valid(modern_problem),
            _SCHEMA: tool.get("inputSchema"),
        },
    }


def _needs_tasks(given: dict[str, Any]) -> bool:
    """Return whether the server rejects calls that are not made as tasks (protocol 2025-11-25)."""
    execution = given.get("execution")
    return isinstance(execution, dict) and execution.get("taskSupport") == "required"


def _problem(tool: dict[str, Any]) -> str | None:
    try:
        # The strictest version: later ones differ in what surrounds the tools.
        validate_server_result("tools/list", LATEST_HANDSHAKE_VERSION, {"tools": [tool]})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        path = ".".join(map(str, first["loc"][2:]))
        return _not_valid(f"{path}: {first['msg']}")
    return None


def _not_valid(reason: str) -> str:
    return clean(f"Not valid MCP: {reason}"[:_MAX_PROBLEM_CHARACTERS])
