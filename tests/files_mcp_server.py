"""The MCP server `files` of the documents' examples, on loopback: `files_mcp_server.py PORT`."""

import sys

from mcp.server.mcpserver import MCPServer

server = MCPServer("files")


@server.tool()
def delete_file(path: str) -> str:
    """Delete a file."""
    return f"{path} is deleted."


server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
