"""An MCP server over stdio that returns the `_meta` of a call, and reports its progress."""

import json

from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("caller")


@server.tool()
async def whoami(context: Context) -> str:
    """Return the metadata of this call."""
    await context.report_progress(1, 2, "half of it")
    return json.dumps(dict(context.request_context.meta or {}))


server.run("stdio")
