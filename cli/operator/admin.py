"""`arkloop admin`: the work of an operator, straight in the database, without a web process."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import click

from arkloop.cli.listing import print_explanation, print_fields
from arkloop.cli.operator.database import (
    database_url_option,
    find_org,
    lease_option,
    record,
    without_notifications,
)
from arkloop.cli.operator.operators import operators
from arkloop.cli.operator.orgs import orgs
from arkloop.cli.output import compact, print_json, print_line, printable
from arkloop.shared.config import MAX_RETENTION_DAYS, Settings
from arkloop.shared.errors import RunNotFound
from arkloop.shared.monitoring import installation
from arkloop.shared.runs import operated_runs, retention, shown_explanation
from arkloop.shared.runs.moved_orgs import OrgMoved
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.times import plain_values

F = TypeVar("F", bound=Callable[..., Any])

_heartbeat_option = click.option(
    "--heartbeat-seconds",
    envvar="ARKLOOP_HEARTBEAT_SECONDS",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    help="The workers' heartbeat: a worker that missed three of them is away.",
)


def _days_option(command: F, **default: Any) -> F:
    return click.option(
        "--retention-days",
        envvar="ARKLOOP_RETENTION_DAYS",
        type=click.IntRange(1, MAX_RETENTION_DAYS),
        help="Days after its end for which a run is kept.",
        **default,
    )(command)


_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
_run_ids = click.argument("run_ids", nargs=-1, required=True, type=click.UUID)


@click.group()
def admin() -> None:
    """Look after all organizations: queues, workers, stuck runs, retention; no server is needed.

    Give it the environment of the service: its lease decides which runs may be queued again.
    """


admin.add_command(orgs)
admin.add_command(operators)


@admin.command()
@database_url_option
@click.option("--org", help="This organization alone, by its id or slug.")
@_as_json
def queues(database_url: str, org: str | None, as_json: bool) -> None:
    """List organizations with runs that have not ended, the longest wait for a worker first.

    Suspended ones come last.
    """
    with without_notifications(database_url) as connections, connections.reading() as sql:
        org_id = None if org is None else find_org(sql, org)
        _print(installation.queues(sql, org_id), as_json)


@admin.command()
@database_url_option
@lease_option
@_heartbeat_option
@_as_json
def workers(
    database_url: str, lease_seconds: float, heartbeat_seconds: float, as_json: bool
) -> None:
    """List worker processes of the last day, those that are alive first."""
    settings = {"lease_seconds": lease_seconds, "heartbeat_seconds": heartbeat_seconds}
    with (
        without_notifications(database_url, **settings) as connections,
        connections.reading() as sql,
    ):
        _print(installation.workers(sql, connections.settings), as_json)


@admin.command()
@database_url_option
@lease_option
@click.option("--queued-seconds", type=click.IntRange(1), default=60, show_default=True)
@click.option("--silent-seconds", type=click.IntRange(10), default=600, show_default=True)
@_as_json
def stuck(
    database_url: str,
    lease_seconds: float,
    queued_seconds: int,
    silent_seconds: int,
    as_json: bool,
) -> None:
    """List runs that should have moved on by now, the longest stuck first."""
    with (
        without_notifications(database_url, lease_seconds=lease_seconds) as connections,
        connections.reading() as sql,
    ):
        found = installation.stuck_runs(
            sql,
            connections.settings,
            queued_seconds=queued_seconds,
            silent_seconds=silent_seconds,
        )
        _print(found, as_json)


@admin.command()
@database_url_option
@lease_option
@_heartbeat_option
@click.option(
    "--sweep-seconds",
    envvar="ARKLOOP_SWEEP_SECONDS",
    type=click.FloatRange(min=0.1),
    default=Settings.sweep_seconds,
    show_default=True,
    help="The time between two sweeps.",
)
@click.argument("run_id", type=click.UUID)
@click.option("--json", "as_json", is_flag=True, help="Print the explanation as JSON.")
def explain(database_url: str, run_id: UUID, as_json: bool, **settings: float) -> None:
    """Explain why a run of any organization is where it is, and what happens to it next.

    It prints as `arkloop runs explain` does, also of a run of a deleted thread, but no error's
    message. It does not know of an outage of the broker.
    """
    with without_notifications(database_url, **settings) as connections:
        try:
            found = shown_explanation.explained_to_operator(connections, run_id)
        except RunNotFound:
            raise click.ClickException(f"There is no run {run_id}.") from None
    print_explanation(found, as_json)


@admin.command()
@database_url_option
@lease_option
@_run_ids
def requeue(database_url: str, lease_seconds: float, run_ids: tuple[UUID, ...]) -> None:
    """Queue runs again that no worker holds, and print what came of each: `queued`, say.

    `held`: a worker executes it, and nothing was changed. It may be repeated at any time.
    """
    with without_notifications(database_url, lease_seconds=lease_seconds) as connections:
        _each(connections, run_ids, _requeue)


@admin.command()
@database_url_option
@_run_ids
def cancel(database_url: str, run_ids: tuple[UUID, ...]) -> None:
    """Cancel runs with all runs below them, in the name of their creators.

    The worker of one that is executed stops it with its next heartbeat.
    """
    with without_notifications(database_url) as connections:
        _each(connections, run_ids, _cancel)


@admin.group("retention")
def retention_() -> None:
    """Show what the retention has left to delete, or delete it now."""


@retention_.command()
@database_url_option
@partial(_days_option, default=90, show_default=True)
def show(database_url: str, retention_days: int) -> None:
    """Print as JSON how many runs are kept, are too old, and are deleted but for their events."""
    with without_notifications(database_url) as connections, connections.reading() as sql:
        print_json(plain_values(installation.retained(sql, retention_days)._asdict()))


@retention_.command("run")
@database_url_option
@partial(_days_option, required=True)
def run_(database_url: str, retention_days: int) -> None:
    """Delete what is too old, as the sweep does, until nothing is left of it.

    The days have no default here: with fewer than the service has it would delete what that keeps.
    Events of runs that were deleted within the last minute stay: somebody may be reading them.
    """
    with without_notifications(database_url, retention_days=retention_days) as connections:
        while retention.forget(connections, waits=True):
            pass
        with connections.reading() as sql:
            print_json(plain_values(installation.retained(sql, retention_days)._asdict()))


def _requeue(tx: Transaction, run_id: UUID) -> str:
    done = operated_runs.requeue(tx, run_id)
    details = {"was": done.was, "outcome": done.outcome}
    record(tx, done.org_id, "run.requeued", "run", run_id, **details)
    return done.outcome


def _cancel(tx: Transaction, run_id: UUID) -> str:
    org_id, was_active = operated_runs.cancel(tx, run_id)
    if was_active:
        record(tx, org_id, "run.cancelled", "run", run_id)
    return "cancelled" if was_active else "ended"


def _each(
    connections: Connections,
    run_ids: tuple[UUID, ...],
    action: Callable[[Transaction, UUID], str],
) -> None:
    """Do it to each run in a transaction of its own. Raises: Exit: a run is not here."""
    are_here = True
    for run_id in run_ids:
        try:
            with connections.transaction() as tx:
                outcome = action(tx, run_id)
        except RunNotFound:
            are_here, outcome = False, "not found"
        except OrgMoved:
            are_here, outcome = False, "its organization is in another cell"
        print_fields(str(run_id), outcome)
    if not are_here:
        raise click.exceptions.Exit(1)


def _print(rows: Any, as_json: bool) -> None:
    """Print rows as JSON, or each on a line, with its names; and whether there may be more."""
    if len(rows) >= installation.MOST:
        print_line(f"The first {installation.MOST}; there may be more.", err=True)
    plain = [plain_values(row._asdict()) for row in rows]
    if as_json:
        print_json(plain)
        return
    for row in plain:
        texts = {
            name: value if isinstance(value, str) else compact(value)
            for name, value in row.items()
            if value is not None
        }
        print_line("  ".join(f"{name}={printable(text)}" for name, text in texts.items()))
