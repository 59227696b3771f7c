"""`arkloop personas`, `routes`, `providers` and `mcp`: what runs of an org can be made with."""

import click

from arkloop.cli.client.resources import Resource, as_json, connected, segment, show_rows
from arkloop.cli.listing import print_rows
from arkloop.cli.output import print_json, print_line

_PERSONAS = Resource(
    "/personas", ("id", "source", "route_id", "agent", "tools"), "PERSONA_ID", "personas"
)
_PROVIDERS = Resource(
    "/llm-providers",
    ("id", "name", "kind", "base_url", "has_api_key", "created_at"),
    "PROVIDER_ID",
    "providers",
)
_SERVERS = Resource(
    "/mcp-configs",
    ("id", "name", "transport", "url", "tool_count", "discovery_error"),
    "SERVER_ID",
    "MCP servers",
)
_ROUTE_COLUMNS = ("id", "source", "provider", "model", "is_default", "context_tokens")
_MODEL_COLUMNS = ("route_id", "model", "priority", "is_default", "prices_source", "context_tokens")
_TOOL_COLUMNS = ("name", "is_approved", "changed", "is_present", "problem", "hash")


@click.group()
def personas() -> None:
    """List, show and publish personas."""


_PERSONAS.add_list(personas)
_PERSONAS.add_show(personas)
_PERSONAS.add_create(personas, "publish")


@click.group()
def routes() -> None:
    """List the models that runs can name."""


@routes.command("list")
@as_json
def list_routes(as_json: bool) -> None:
    """List the server's routes, then the org's; in a pipe tab-separated, without a header."""
    with connected() as client:
        found = client.get("/routes")
    if as_json:
        print_json(found)
    else:
        print_rows(_ROUTE_COLUMNS, found)


@click.group()
def providers() -> None:
    """List, show, create and delete providers of models, and list their models."""


_PROVIDERS.add_list(providers)
_PROVIDERS.add_show(providers)
_PROVIDERS.add_create(providers)
_PROVIDERS.add_delete(providers)


@providers.command()
@click.argument("provider_id")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@as_json
def models(provider_id: str, limit: int, as_json: bool) -> None:
    """List the models of a provider, which are routes."""
    path = f"/llm-providers/{segment(provider_id)}/models"
    show_rows(path, _MODEL_COLUMNS, limit, as_json)


@click.group()
def mcp() -> None:
    """List, show, create and delete MCP servers; list and approve their tools."""


_SERVERS.add_list(mcp)
_SERVERS.add_show(mcp)
_SERVERS.add_create(mcp)
_SERVERS.add_delete(mcp)


@mcp.command()
@click.argument("server_id")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@as_json
def tools(server_id: str, limit: int, as_json: bool) -> None:
    """List the tools of an MCP server, with the hash of each description."""
    show_rows(f"{_path(server_id)}/tools", _TOOL_COLUMNS, limit, as_json)


@mcp.command()
@click.argument("server_id")
def discover(server_id: str) -> None:
    """Ask an MCP server for its tools now; `tools` lists them a moment later."""
    with connected() as client:
        client.post(f"{_path(server_id)}:discover")
    print_line("ok")


@mcp.command()
@click.argument("server_id")
@click.argument("tool")
@click.argument("hash_", metavar="HASH")
def approve(server_id: str, tool: str, hash_: str) -> None:
    """Approve a tool by the HASH that `tools` shows: runs may call it until its text changes."""
    path = f"{_path(server_id)}/tools/{segment(tool)}:approve"
    with connected() as client:
        client.post(path, {"hash": hash_})
    print_line("ok")


def _path(server_id: str) -> str:
    return f"/mcp-configs/{segment(server_id)}"
