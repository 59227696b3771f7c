"""An MCP server over stdio that asks people during its calls: `form_mcp_server.py LOG`.

It writes a line to LOG for each effect.
"""

import json
import sys
from pathlib import Path

import mcp_types as types
from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("forms")
SEATS = {
    "type": "object",
    "properties": {"seats": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["seats"],
}
VISIT = {
    "type": "object",
    "properties": {
        "guests": {"type": "integer"},
        "name": {"type": "string"},
        "discount_percent": {"type": "integer", "title": "Only for members"},
        "newsletter": {"type": "boolean"},
        "room": {"type": "string", "enum": ["garden", "bar"]},
        "language": {"type": "string", "default": "en"},
    },
    "required": ["guests", "name"],
}


def asking(
    context: Context, key: str, params: types.ElicitRequestParams
) -> types.InputRequiredResult:
    request = types.ElicitRequest(params=params)
    state = f"{context.request_state or ''}{key};"
    return types.InputRequiredResult(input_requests={key: request}, request_state=state)


@server.tool()
async def book(table: str, context: Context) -> str | types.InputRequiredResult:
    """Reserve a table, for as many people as somebody says."""
    if context.request_state is None:
        form = types.ElicitRequestFormParams(message="How many?", requested_schema=SEATS)
        return asking(context, "seats", form)
    replies = context.input_responses or {}
    if context.request_state == "seats;":
        seats = replies["seats"]
        if seats.action != "accept":
            return f"not booked: {seats.action}"
        page = types.ElicitRequestURLParams(message="Pay.", url="https://pay.example/7")
        return asking(context, f"paid {seats.content['seats']}", page)
    with Path(sys.argv[1]).open("a") as log:
        log.write(f"{table} {context.request_state}\n")
    return f"booked: {context.request_state}"


@server.tool()
async def visit(context: Context) -> str | types.InputRequiredResult:
    """Ask for a form with optional fields, and return what was filled in."""
    if context.request_state is None:
        form = types.ElicitRequestFormParams(message="Who comes?", requested_schema=VISIT)
        return asking(context, "visit", form)
    replies = context.input_responses or {}
    return json.dumps(replies["visit"].content)


server.run("stdio")
