"""`arkloop admin orgs`: what is set for one org, its suspension and its move, in the database."""

from typing import Any
from uuid import UUID

import click
from sqlalchemy import Connection, Row

from arkloop.cli.operator.cells import copy, erase
from arkloop.cli.operator.database import (
    database,
    database_url_option,
    find_org,
    org_option,
    record,
    without_notifications,
)
from arkloop.cli.output import print_json, print_line
from arkloop.shared.accounts import members, org_settings, suspensions
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.org_limits import WEIGHT
from arkloop.shared.runs.moved_orgs import OrgMoved
from arkloop.shared.storage import org_urls
from arkloop.shared.times import rfc3339_or_none

DEFAULT = "default"
_HELP = {
    "org_requests_per_minute": "Requests of the organization in a minute.",
    "key_requests_per_minute": "Requests of each of its API keys in a minute.",
    "org_concurrent_runs": "Runs of the organization from their creation to their end.",
    "key_concurrent_runs": "The same for the runs of each of its API keys.",
    "org_queued_runs": "Runs that wait for a worker, their thread or their time.",
    "org_streams": "Open streams of the organization.",
    "key_streams": "Open streams of each of its API keys.",
    WEIGHT: "Runs that it starts in each round of turns, 1 to 100.",
}


class _Value(click.ParamType[int]):
    """A number, or the word that takes it back: -1."""

    name = f"integer|{DEFAULT}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == DEFAULT:
            return _TAKEN_BACK
        return click.IntRange(min=0).convert(value, param, ctx)


#: Stands for None, which click takes for an option that is not given.
_TAKEN_BACK = -1


@click.group()
def orgs() -> None:
    """Limit single organizations, suspend or move them; no server is needed."""


orgs.add_command(copy)
orgs.add_command(erase)


@orgs.command("set")
@database_url_option
@org_option
@click.option(
    "--public-url",
    metavar=f"ORIGIN|{DEFAULT}",
    help="Where identity providers and MCP servers send its people back to.",
)
def set_(database_url: str, org: str, public_url: str | None, **given: int | None) -> None:
    """Set limits, weight and public URL of an organization, and print all that is set for it as
    JSON.

    What is not given stays. 0 is no limit; `default` stands for the limit of all organizations and
    for their public URL, which are settings of the server, and for the weight 1. It counts within
    2 seconds.
    """
    values = {
        name: None if value == _TAKEN_BACK else value
        for name, value in given.items()
        if value is not None
    }
    if not values and public_url is None:
        raise click.UsageError("Give at least one option besides --org.")
    with database(database_url) as connections, connections.transaction() as tx:
        org_id = find_org(tx.sql, org)
        try:
            changed: dict[str, Any] = org_settings.change(tx, org_id, values)
            if public_url is not None:
                url = None if public_url == DEFAULT else public_url
                changed |= org_urls.change(tx, org_id, url)
        except InvalidRequest as error:
            problems = [f"{_option(name)}: {why[0]}" for name, why in error.details.items()]
            raise click.ClickException("\n".join(problems)) from None
        if changed:
            record(tx, org_id, "org.settings_changed", "org", org_id, **changed)
        own = _own_of(tx.sql, org_id)
    print_json({"org_id": str(org_id), **own})


def _own_of(sql: Connection, org_id: UUID) -> dict[str, Any]:
    return {**org_settings.own_of(sql, org_id), "public_url": org_urls.find(sql, org_id)}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


set_.params += [
    click.Option([_option(name), name], type=_Value(), help=_HELP[name])
    for name in org_settings.NAMES
]


@orgs.command()
@database_url_option
@org_option
@click.option("--reason", required=True, help="Why, in at most 500 characters; it is recorded.")
def suspend(database_url: str, org: str, reason: str) -> None:
    """Refuse all credentials of an organization, and cancel what is executed for it.

    It counts within 2 seconds, and until it is resumed. Queued runs stay queued. It may be
    repeated, with another reason.
    """
    with without_notifications(database_url) as connections, connections.transaction() as tx:
        org_id = find_org(tx.sql, org)
        try:
            row = suspensions.suspend(tx, org_id, reason)
        except InvalidRequest as error:
            raise click.ClickException(f"--reason: {error.details['reason'][0]}") from None
        record(tx, org_id, "org.suspended", "org", org_id, reason=row.suspension_reason)
    print_json(_state(row))


@orgs.command()
@database_url_option
@org_option
@click.option(
    "--despite-copy",
    is_flag=True,
    help="Also if it was copied to another cell, or to this one in an earlier epoch. It must never"
    " be resumed in the other of the two cells.",
)
def resume(database_url: str, org: str, despite_copy: bool) -> None:
    """Open a suspended organization again: its credentials work, and its queued runs start.

    One that is not suspended stays as it is. One that was copied to another cell opens there, while
    that cell has the epoch of then. A line on standard error says that its only owner was erased.
    """
    with without_notifications(database_url) as connections, connections.transaction() as tx:
        org_id = find_org(tx.sql, org)
        try:
            row, was_suspended = suspensions.resume(tx, org_id, despite_copy=despite_copy)
        except OrgMoved as error:
            raise click.ClickException(
                f"It was copied to another cell, whose epoch is {error.details['moved_to']}:"
                " resume it there. If that copy is not to be used, or that was an earlier epoch of"
                " this cell: --despite-copy."
            ) from None
        if was_suspended:
            record(tx, org_id, "org.resumed", "org", org_id)
        lacks_owner = members.lacks_owner(tx.sql, org_id)
    if lacks_owner:
        print_line(
            "The organization has members and no owner. To create one: `arkloop users create --org"
            f" {org_id} --role owner …`.",
            err=True,
        )
    print_json(_state(row))


@orgs.command()
@database_url_option
@org_option
def show(database_url: str, org: str) -> None:
    """Print what is set for an organization, as JSON; null is what all organizations have.

    For a suspended one, since when and why it is that, and where it is copied to.
    """
    with database(database_url) as connections, connections.reading() as sql:
        org_id = find_org(sql, org)
        own = _own_of(sql, org_id)
        row = suspensions.get(sql, org_id)
    print_json({**_state(row), **own})


def _state(row: Row[Any]) -> dict[str, Any]:
    return {
        "org_id": str(row.id),
        "suspended_at": rfc3339_or_none(row.suspended_at),
        "suspension_reason": row.suspension_reason,
        "moved_to": None if row.moved_to is None else str(row.moved_to),
        "copy_began_at": rfc3339_or_none(row.copy_began_at),
    }


@orgs.command("list")
@database_url_option
def list_(database_url: str) -> None:
    """Print all organizations that have settings or are suspended, as a JSON array, by id."""
    with database(database_url) as connections, connections.reading() as sql:
        rows = org_settings.list_(sql)
    print_json(
        [
            {
                **row._mapping,
                "org_id": str(row.org_id),
                "suspended_at": rfc3339_or_none(row.suspended_at),
            }
            for row in rows
        ]
    )
