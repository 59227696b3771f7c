"""An MCP server of the official SDK over HTTP on loopback: `sdk_mcp_server.py PORT FOLDER [ADDS]`.

ADDS is the description of its tool `add`.
"""

import sys
from pathlib import Path

import anyio
from mcp import MCPError
from mcp.server.mcpserver import Context, MCPServer

FOLDER = Path(sys.argv[2])
server = MCPServer("sdk")


@server.tool(description=(sys.argv[3:] or ["Add two numbers."])[0])
def add(a: int, b: int) -> str:
    (FOLDER / "added").touch()
    return str(a + b)


@server.tool()
def header(name: str, context: Context) -> str:
    """Return a header of the request."""
    headers = context.headers or {}
    return str(headers.get(name.lower()))


@server.tool()
def pay(code: int) -> str:
    """Do the work, then fail with this code."""
    with (FOLDER / "paid").open("a") as paid:
        print(code, file=paid)
    raise MCPError(code=code, message="The account is closed.")


@server.tool()
async def wait(seconds: float) -> str:
    """Wait, and write down if it was interrupted."""
    (FOLDER / "waiting").touch()
    try:
        await anyio.sleep(seconds)
    except BaseException:
        (FOLDER / "cancelled").touch()
        raise
    return "waited"


server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
