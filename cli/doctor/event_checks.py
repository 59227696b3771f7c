"""Partitions of the table of events: whether the sweep may make and drop them, and has done so."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from uuid import UUID

from sqlalchemy import Connection, text

from arkloop.cli.doctor.findings import Finding, fail, ok, warn
from arkloop.shared.config import Settings
from arkloop.shared.events import partitions
from arkloop.shared.events.partitions import Partition
from arkloop.shared.storage import service_role

#: Events of the default partition are counted up to here.
_MOST = 100_000
#: Retentions from now after which no partition ends that this code has made with the one retention:
#: `arkloop migrate` makes those of one and a half.
_AHEAD = 2
#: At least: migration 62 makes the first two for weeks, whatever the retention.
_LEAST_AHEAD = timedelta(days=60)
#: A process tidies every half a minute, and leaves what a dump reads to a later time.
_PATIENCE = timedelta(hours=1)


def of_events(settings: Settings, sql: Connection) -> Iterator[Finding]:
    """Look at privileges on the functions that keep the partitions, and at the partitions."""
    yield from _functions(sql)
    made = partitions.read(sql)
    if not made:
        yield ok("event partitions", "one, without an end: the id of an event lies in the future")
        return
    now: datetime = sql.scalar(text("SELECT now()")) or made[-1].end
    is_large = bool(sql.exec_driver_sql(partitions.IS_LARGE).scalar())
    yield _ahead(sql, made, now, partitions.width(settings.retention_days), is_large)
    yield from _far(made, now, timedelta(days=settings.retention_days))
    if left := partitions.read_exclusions(sql):
        yield fail(
            "event constraints",
            f"events of runs that are created from {min(left)} on are refused: a call of `arkloop"
            " migrate` was killed",
            "Run `arkloop migrate`, or start a web or worker process: its sweep repairs it, unless"
            " a dump reads run_events_default.",
        )
    yield from _default(sql, made, now)


def _functions(sql: Connection) -> Iterator[Finding]:
    lacking = service_role.barred(sql, service_role.FUNCTIONS)
    if lacking:
        yield fail(
            "event functions",
            f"the role {sql.scalar(text('SELECT current_user'))} may not execute"
            f" {' and '.join(lacking)}: old events stay, and new ones get no partition",
            "Run `arkloop migrate` with ARKLOOP_OWNER_DATABASE_URL: it grants them.",
        )
    if open_to_all := service_role.open_to_all(sql):
        yield fail(
            "event functions",
            f"every role of the database may execute {' and '.join(open_to_all)}, with the"
            " privileges of the owner: a restore did not find the role of the service",
            "Run `arkloop migrate` with ARKLOOP_OWNER_DATABASE_URL: it takes that away.",
        )
    if (owners := service_role.stray_functions(sql)) is not None:
        yield fail(
            "event functions",
            f"they belong to {owners[1]}, the tables to {owners[0]}: they may not do what they"
            " are for",
            f"As a superuser: {service_role.handing_over(owners[0])}; then run `arkloop migrate`.",
        )


def _ahead(
    sql: Connection, made: Sequence[Partition], now: datetime, width: timedelta, is_large: bool
) -> Finding:
    """Judge whether the next partition was made: the sweep makes it when less than one is left, and
    fills gaps between them.
    """
    last = made[-1].end
    shown = f"{len(made)}, the last until {last:%Y-%m-%d}"
    until = now + width - _PATIENCE
    found = partitions.missing(sql, made, now=now, earliest=now, until=until, days=width)
    if found is None:
        return ok("event partitions", shown)
    if found.begin < last:
        shown += f", but none from {found.begin:%Y-%m-%d} to {found.end:%Y-%m-%d}"
    advice = (
        'Start a web or worker process: each sweeps. If one runs, look for "tidying up failed" in'
        " the logs, and end what uses run_events for hours (pg_stat_activity)."
    )
    if is_large:
        advice = (
            "Run `arkloop migrate`: it makes the next ones. Sweeps make none while"
            " run_events_default is large: Postgres would look at its rows while others wait."
        )
    if found.since > now:
        return warn("event partitions", f"{shown}: the next one was not made", advice)
    return fail(
        "event partitions", f"{shown}: newer events go to run_events_default, one by one", advice
    )


def _far(made: Sequence[Partition], now: datetime, retention: timedelta) -> Iterator[Finding]:
    """Find a partition that is not over for long, so that its events are not dropped."""
    last = made[-1]
    if last.end <= now + max(_AHEAD * retention, _LEAST_AHEAD):
        return
    yield warn(
        "event partition ahead",
        f"{last.name} ends {last.end:%Y-%m-%d}, further ahead than partitions are made for"
        f" {retention.days} days: until then its events are deleted one by one",
        "Nothing has to be done if ARKLOOP_RETENTION_DAYS was longer, or the clock of Postgres was"
        " ahead. Else see who may execute add_run_events_partition: \\df+ add_run_events_partition",
    )


def _default(sql: Connection, made: Sequence[Partition], now: datetime) -> Iterator[Finding]:
    """Find events outside of all partitions, by ids: a role that owns no table sees no partition
    by its own name.
    """
    count, runs = 0, []
    for lower, upper in _gaps(made):
        found = sql.execute(
            text(
                "SELECT count(*), min(run_id::text), max(run_id::text) FROM (SELECT run_id"
                " FROM run_events WHERE run_id >= :lower AND run_id <= :upper LIMIT :most) AS e"
            ),
            {"lower": lower, "upper": upper, "most": _MOST},
        ).one()
        if found[0]:
            count += found[0]
            runs += [UUID(found[1]), UUID(found[2])]
    if not runs:
        return
    first, last = (partitions.time_of(run_id) for run_id in (min(runs), max(runs)))
    shown = (
        f"{count:,}{' or more' if count >= _MOST else ''} events, of runs from"
        f" {first:%Y-%m-%d} to {last:%Y-%m-%d}: they are deleted one by one"
    )
    if last > now + timedelta(days=1):
        yield warn(
            "events without partition",
            f"{shown}; some lie in the future",
            "The clock of a web process's host is or was wrong: compare the clocks. Processes need"
            " no restart once the clock is right. Nothing has to be done about these events: their"
            " days get no partition.",
        )
    elif made[-1].end > now:
        yield ok("events without partition", shown)
    else:
        yield warn(
            "events without partition",
            shown,
            "Nothing is lost, and they need not be moved: repair `event partitions`.",
        )


def _gaps(made: Sequence[Partition]) -> Iterator[tuple[UUID, UUID]]:
    """Yield first and last id of each range between and after the partitions."""
    for one, following in pairwise(made):
        if following.lower is not None and one.upper != following.lower:
            yield one.upper, UUID(int=following.lower.int - 1)
    yield made[-1].upper, UUID(int=(1 << 128) - 1)
