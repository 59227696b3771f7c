"""An MCP server of the official SDK over stdio, whose tool returns a text and an image."""

import base64
import sys

from mcp.server.mcpserver import Image, MCPServer

server = MCPServer("camera")


@server.tool()
def photograph(data: str) -> list[str | Image]:
    """Return the image that `data` is in base64."""
    return ["click", Image(data=base64.b64decode(data), format="png")]


sys.exit(server.run("stdio"))
