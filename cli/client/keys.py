"""`arkloop keys`: API keys of the caller's org."""

import sys
from itertools import islice
from uuid import UUID

import click

from arkloop.cli.client.client import Client
from arkloop.cli.client.server_address import find_server
from arkloop.cli.listing import print_rows
from arkloop.cli.output import print_json, print_line

COLUMNS = ("id", "name", "key_prefix", "created_at", "last_used_at", "revoked_at", "scopes")

_as_json = click.option("--json", "as_json", is_flag=True, help="Print the API's JSON.")


@click.group()
def keys() -> None:
    """Create, list and revoke API keys."""


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    help=(
        "data.threads.read, data.threads.write, data.runs.read, data.runs.write, data.files.read,"
        " data.files.write, tools.work, agents.work, admin or operator;"
        " may be repeated. None: all that you have, without operator."
    ),
)
@_as_json
def create(name: str, scopes: tuple[str, ...], as_json: bool) -> None:
    """Create a key and print it; it is not shown again."""
    narrowed = {"scopes": scopes} if scopes else {}
    made = Client(find_server()).post("/api-keys", {"name": name, **narrowed})
    if as_json:
        print_json(made)
        return
    print_line(made["key"])
    if sys.stdout.isatty():
        print_line(f"Store it now; it is not shown again. Its id is {made['id']}.", err=True)


@keys.command("list")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@_as_json
def list_(limit: int, as_json: bool) -> None:
    """List keys, newest first; in a pipe tab-separated, without a header."""
    found = list(islice(Client(find_server()).rows("/api-keys", limit=limit), limit))
    if as_json:
        print_json(found)
    else:
        print_rows(COLUMNS, found)


@keys.command()
@click.argument("key_id", type=click.UUID)
def revoke(key_id: UUID) -> None:
    """Revoke a key: it stops working everywhere within 5 seconds."""
    Client(find_server()).delete(f"/api-keys/{key_id}")
    print_line("ok")
