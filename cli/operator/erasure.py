"""Exports line by line and erasures, for `arkloop users` and `arkloop end-users`."""

from collections.abc import Callable, Iterable
from typing import Any

import click

from arkloop.cli.output import compact, print_json, write_json
from arkloop.shared.accounts.erasure import RunsGoOn
from arkloop.shared.errors import LastOwner
from arkloop.shared.times import plain_values

yes_option = click.option("--yes", is_flag=True, help="Erase without asking.")


def print_export(entries: Iterable[dict[str, Any]]) -> None:
    """Print each entry as a line of JSON."""
    for entry in entries:
        write_json(compact(plain_values(entry)))


def confirmed(who: str, yes: bool) -> None:
    """Ask whether to erase. Raises: Abort: no."""
    if not yes:
        click.confirm(f"Erase {who} for good?", abort=True)


def print_record(erase: Callable[[], dict[str, Any]]) -> None:
    """Erase, and print the record as JSON.

    Raises:
        ClickException: not everything could be erased.
    """
    try:
        print_json(plain_values(erase()))
    except LastOwner:
        raise click.ClickException(
            "The user is the only owner of an organization with other members. Make another one an"
            " owner first. If `arkloop orgs copy` of the organization was broken off, repeat that"
            " instead."
        ) from None
    except RunsGoOn as error:
        org_ids = ", ".join(map(str, error.org_ids))
        raise click.ClickException(
            "Runs have not ended, though they were cancelled: a worker still holds them, or there"
            f" are very many. Their organizations: {org_ids}. Repeat the command. If `arkloop orgs"
            " copy` of one of these was broken off (`arkloop orgs show` has its `copy_began_at`),"
            " repeat that first."
        ) from None
