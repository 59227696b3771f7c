"""Commands for what an org has set up: lists, single objects, and objects from files.

All of them are alike, so `Resource` makes them from an address and the columns of its list.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from arkloop.cli.client import standard_input
from arkloop.cli.client.client import Client
from arkloop.cli.client.server_address import find_server
from arkloop.cli.listing import print_record, print_rows
from arkloop.cli.output import print_json, print_line

as_json = click.option("--json", "as_json", is_flag=True, help="Print the API's JSON.")
_limit = click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
_file = click.argument(
    "file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
)


@dataclass(frozen=True, slots=True)
class Resource:
    """A list of the API below `path`, and the objects in it, by `argument`."""

    path: str
    columns: Sequence[str]
    argument: str  # of the commands for one of them, as in PROVIDER_ID
    noun: str  # for the help, in the plural

    def add_list(self, group: click.Group) -> None:
        """Add `list`: a table on a terminal, tab-separated in a pipe."""

        @group.command("list", help=f"List {self.noun}; in a pipe tab-separated, without a header.")
        @_limit
        @as_json
        def list_(limit: int, as_json: bool) -> None:
            show_rows(self.path, self.columns, limit, as_json)

    def add_show(self, group: click.Group) -> None:
        """Add `show`: all fields of one object."""

        @group.command("show", help=f"Print all fields of one of the {self.noun}.")
        @click.argument("name", metavar=self.argument)
        @as_json
        def show(name: str, as_json: bool) -> None:
            show_record(f"{self.path}/{segment(name)}", as_json)

    def add_create(self, group: click.Group, verb: str = "create", shown: str = "id") -> None:
        """Add `create`: an object from a file, of which `shown` is printed."""

        @group.command(
            verb,
            help=f"{verb.capitalize()} one of the {self.noun} by FILE, JSON or YAML (`-`: standard"
            " input), with the fields of the API.",
        )
        @_file
        @as_json
        def create(file: Path, as_json: bool) -> None:
            fields = read_object(file)
            with connected() as client:
                made = client.post(self.path, fields)
            if as_json:
                print_json(made)
            else:
                print_line(made[shown])

    def add_delete(self, group: click.Group) -> None:
        """Add `delete`: asks before, unless `--yes` is given."""

        @group.command("delete", help=f"Delete one of the {self.noun}.")
        @click.argument("name", metavar=self.argument)
        @click.option("--yes", is_flag=True, help="Delete without asking.")
        def delete(name: str, yes: bool) -> None:
            path = f"{self.path}/{segment(name)}"
            if not yes:
                standard_input.confirm(f"Delete {name}?")
            with connected() as client:
                client.delete(path)
            print_line("ok")


def segment(name: str) -> str:
    """Return a name as a part of a path, which leads to nothing else.

    Raises:
        click.UsageError: it is a step in the path, and would be taken, escaped or not; or it is not
            UTF-8.
    """
    if name not in (".", ".."):
        with suppress(UnicodeEncodeError):
            return quote(name, safe="@")
    raise click.UsageError(f"{name!r} is neither a name nor an id.")


@contextmanager
def connected() -> Iterator[Client]:
    """Lend a client of the server for the length of the block."""
    client = Client(find_server())
    try:
        yield client
    finally:
        client.http.close()


def show_rows(path: str, columns: Sequence[str], limit: int, as_json: bool) -> None:
    """Print at most `limit` objects of a list."""
    with connected() as client:
        found = list(islice(client.rows(path, limit=limit), limit))
    if as_json:
        print_json(found)
    else:
        print_rows(columns, found)


def show_record(path: str, as_json: bool) -> None:
    """Print an object."""
    with connected() as client:
        found = client.get(path)
    if as_json:
        print_json(found)
    else:
        print_record(found)


def read_object(file: Path) -> dict[str, Any]:
    """Read the fields of an object from a file of JSON or YAML.

    JSON is read as such: YAML reads tabs, numbers like 1e-05 and escaped pairs of surrogates
    differently.

    Raises:
        ClickException: it is none.
    """
    import yaml  # when it is needed: it takes its time

    try:
        text = standard_input.read_text() if str(file) == "-" else file.read_text()
        try:
            found = json.loads(text, parse_constant=_refuse)
        except ValueError:
            found = yaml.safe_load(text)
        json.dumps(found, allow_nan=False)  # YAML has dates, bytes and NaN, too
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise click.ClickException(f"{file}: {reason}") from None
    if not isinstance(found, dict):
        raise click.ClickException(f"{file}: must be an object with the fields of the API")
    return found


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
