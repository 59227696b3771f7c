"""The partitions of the table of events: each has the runs of some days, by their ids.

Ids of runs begin with their time. The first partition has all that came before the table had
partitions, the default one whatever belongs to none: it has rows only if no partition could be made
for weeks, or the clock of a host is wrong. The database's own functions make and drop partitions,
since the service's role may own no table (see migration 62).
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import IntegrityError

from arkloop.shared.storage import schema
from arkloop.shared.storage.connections import Connections, Transaction

log = logging.getLogger(__name__)

_LOCK_KEY = 0x7061727473  # "parts"

#: A part of the retention is in one partition: what is dropped at once has waited for that long.
PARTS = 6
#: Of `make_room`. Usually eight; more where days are left out, as strays of the future have them.
_MOST_AT_ONCE = 24
_DAY = timedelta(days=1)
_EPOCH = datetime.fromtimestamp(0, UTC)

_ADD = "SELECT add_run_events_partition(%(lower)s, %(upper)s)"
#: As the function has it: below this, Postgres looks at the default partition in a moment.
IS_LARGE = "SELECT pg_relation_size(to_regclass('run_events_default')) > 33554432"
#: Constraints that `make_room` needs for a moment; one that is left is of a call that was killed.
EXCLUSIONS = """
SELECT quote_ident(conname) FROM pg_constraint
WHERE conrelid = to_regclass('run_events_default')
    AND starts_with(conname::text, 'ck_run_events_2')
"""
_ADMIT = "SELECT admit_run_events()"
_IS_MAKING_ROOM = """
SELECT EXISTS (
    SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND (classid::bigint << 32 | objid::bigint) = %(key)s
)
"""
_PAUSE_SECONDS = 0.5

#: Name and bounds of each partition that has an end.
READ = """
SELECT name, lower_id, upper_id FROM run_events_partitions()
WHERE upper_id IS NOT NULL ORDER BY upper_id
"""

_FIRST_BETWEEN = text(
    "SELECT run_id FROM run_events WHERE run_id >= :lower AND run_id < :upper"
    " ORDER BY run_id LIMIT 1"
)


class TableInUse(Exception):
    """An end of waiting: the table of events was in use all the time, and nothing is changed."""


class Partition(NamedTuple):
    """A partition for ids from `lower` on, or for all, and below `upper`."""

    name: str
    lower: UUID | None
    upper: UUID

    @property
    def end(self) -> datetime:
        """Return the time before which its runs were created."""
        return time_of(self.upper)


class Missing(NamedTuple):
    """Days that a partition can have, in a gap that begins with `since`.

    `left_out` is a run of the days before them that can have none.
    """

    since: datetime
    begin: datetime
    end: datetime
    left_out: UUID | None


def width(retention_days: int) -> timedelta:
    """Return for how long runs go to the same partition."""
    return max(_DAY, retention_days // PARTS * _DAY)


def bound(moment: datetime) -> UUID:
    """Return the lowest id that a run of this time can have."""
    return UUID(int=(moment - _EPOCH) // timedelta(milliseconds=1) << 80)


def time_of(run_id: UUID) -> datetime:
    """Return the time in an id, the last one that there is for an id of a later one."""
    try:
        return _EPOCH + timedelta(milliseconds=run_id.int >> 80)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def read(sql: Connection) -> Sequence[Partition]:
    """Return the partitions that have an end, in their order."""
    return [Partition(*row) for row in sql.exec_driver_sql(READ)]


def read_exclusions(sql: Connection) -> Sequence[str]:
    """Return from which days on, as 2026-11-29, events are refused since a call of `make_room` was
    killed; none while one is under way.
    """
    if sql.exec_driver_sql(_IS_MAKING_ROOM, {"key": _LOCK_KEY}).scalar():
        return []
    days = [name.rpartition("_")[2] for name in sql.exec_driver_sql(EXCLUSIONS).scalars()]
    return [f"{day[:4]}-{day[4:6]}-{day[6:8]}" for day in days]


def add_ahead(connections: Connections) -> bool:
    """Make the next partition unless there is one for the days after these; returns whether it did.
    A gap between two of them is filled first.

    Where somebody uses the table for long, such as a dump, it is left to the next call; where the
    default partition is large, to `make_room`. What a killed call of that has left is removed.

    Raises:
        Unavailable: Postgres is out of reach.
    """
    days = width(connections.settings.retention_days)
    with connections.transaction() as tx:
        if not tx.sql.scalar(select(func.pg_try_advisory_xact_lock(_LOCK_KEY))):
            return False
        if tx.sql.exec_driver_sql(EXCLUSIONS).scalar() is not None:
            # Nobody else has the lock: it is left, and events of that time would be refused.
            is_gone = tx.sql.exec_driver_sql(_ADMIT).scalar()
            log.warning("`arkloop migrate` was killed; undone: %s", is_gone)
        now: datetime = tx.sql.exec_driver_sql("SELECT now()").scalar_one()
        made = read(tx.sql)
        found = missing(tx.sql, made, now=now, earliest=now, until=now + days, days=days)
        if found is None:
            return False
        _note(found, now)
        is_made = tx.sql.exec_driver_sql(_ADD, _range(found.begin, found.end)).scalar()
        if is_made is None:
            _note_large(connections.settings.database_url, made[-1].name)
        return bool(is_made)


@lru_cache(maxsize=1)
def _note_large(_database_url: str, _last: str) -> None:
    """Log it, once for as long as it is the same partition that is the last one."""
    log.error("run_events_default is large: `arkloop migrate` makes the next partitions")


def make_room(
    engine: Engine,
    *,
    retention_days: int,
    lock_seconds: float,
    report: Callable[[str], None] | None = None,
) -> list[str]:
    """Make the partitions of more than one retention, if the default partition is so large that
    sweeps make none; returns their names. It is looked at beside everybody else, once for each.

    `engine` has the role that owns the tables; `lock_seconds` is how long to wait for others, and
    `report` gets a line about another call that this one waits for, as that of `schema.locked`.

    Raises:
        TableInUse, OperationalError: somebody used the table all the time, by the latter with
            `LockNotAvailable` as its `orig`.
        StandbyLost: as `schema.change`.
    """
    names: list[str] = []
    tries = 3
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as sql:
        try:
            # Also the limits of the session end with it.
            schema.lift_limits(sql)
            sql.exec_driver_sql("SELECT set_config('arkloop.orgs', '*', false)")
            # What a partition contains is read by patterns with backslashes.
            sql.exec_driver_sql("SET standard_conforming_strings = on")
            # Before anything is removed that another call may be in need of.
            schema.take_turn(sql, _LOCK_KEY, report=report)
            _admit_all(engine, sql, lock_seconds)
            if not sql.exec_driver_sql(IS_LARGE).scalar():
                return names
            while len(names) < _MOST_AT_ONCE and (days := _next_days(sql, retention_days)):
                try:
                    names.append(_add_beside(engine, sql, *days, lock_seconds))
                except IntegrityError:
                    # An event of that time was stored since: the next range is without it.
                    if (tries := tries - 1) == 0:
                        raise
        finally:
            sql.invalidate()
    return names


def _next_days(sql: Connection, retention_days: int) -> tuple[datetime, datetime] | None:
    """Return begin and end of the next partition, None if there are enough.

    By then the default partition has lost what it has, and sweeps make the next ones.
    """
    now: datetime = sql.exec_driver_sql("SELECT now()").scalar_one()
    days = width(retention_days)
    found = missing(
        sql,
        read(sql),
        now=now,
        # The default partition refuses events of that time until it is made, and for good if the
        # call is killed: it begins when a sweep has removed that, or somebody has seen it.
        earliest=_day_after_tomorrow(now),
        until=now + retention_days * _DAY + 2 * days,
        days=days,
    )
    if found is None:
        return None
    _note(found, now)
    return found.begin, found.end


def _add_beside(
    engine: Engine, sql: Connection, begin: datetime, end: datetime, lock_seconds: float
) -> str:
    """Make one partition, and let Postgres look at the default partition before that."""
    name, bounds = f"run_events_{begin:%Y%m%d}", _range(begin, end)
    exclude = (
        f"ALTER TABLE run_events_default ADD CONSTRAINT ck_{name}"
        f" CHECK (run_id < '{bounds['lower']}' OR run_id >= '{bounds['upper']}') NOT VALID"
    )
    schema.change(engine, [exclude], lock_seconds=lock_seconds)
    try:
        sql.exec_driver_sql(f"ALTER TABLE run_events_default VALIDATE CONSTRAINT ck_{name}")
        deadline = time.monotonic() + lock_seconds
        while not sql.exec_driver_sql(_ADD, bounds).scalar():
            if time.monotonic() > deadline:
                raise TableInUse(f"somebody uses run_events: {name} was not made")
            time.sleep(_PAUSE_SECONDS)
    except BaseException:
        _admit_all(engine, sql, lock_seconds)
        raise
    return name


def _admit_all(engine: Engine, sql: Connection, lock_seconds: float) -> None:
    """Take away what keeps events of some time from the default partition: without a partition of
    theirs they could not be stored, once that time has come.
    """
    found = sql.exec_driver_sql(EXCLUSIONS).scalars().all()
    remove = [f"ALTER TABLE run_events_default DROP CONSTRAINT IF EXISTS {name}" for name in found]
    if remove:
        schema.change(engine, remove, lock_seconds=lock_seconds)


def missing(
    sql: Connection,
    made: Sequence[Partition],
    *,
    now: datetime,
    earliest: datetime,
    until: datetime,
    days: timedelta,
) -> Missing | None:
    """Return the first days, at most `days`, without a partition and without an event, in a gap
    that begins before or at `until`; None without such a gap, and where all is one partition.

    In a gap that begins before `earliest`, they begin the day after tomorrow: what comes before
    them is in the default partition, and stays there.
    """
    for since, gap_end in _gaps(made, now):
        if since > until:
            break
        begin = _day_after_tomorrow(now) if since < earliest else since
        if free := _free(sql, begin, gap_end, days):
            return Missing(since, *free)
    return None


def _gaps(made: Sequence[Partition], now: datetime) -> Iterator[tuple[datetime, datetime | None]]:
    """Yield begin and end of each time without a partition that is not over; the last has no end.

    Between partitions are days with events of the future, and those that were left out while
    Postgres' clock was ahead.
    """
    since = _EPOCH
    for one in made:
        if one.lower is not None and since < (begin := time_of(one.lower)) and begin > now:
            yield since, begin
        since = one.end
    if made:
        yield since, None


def _free(
    sql: Connection, begin: datetime, gap_end: datetime | None, days: timedelta
) -> tuple[datetime, datetime, UUID | None] | None:
    """Return begin and end of the first days from `begin` on, at most `days`, of which no event is
    stored yet: Postgres makes no partition for rows that the default one has. And a run of the days
    before them, if they were left out for that.
    """
    left_out = None
    while gap_end is None or begin < gap_end:
        end = begin + days if gap_end is None else min(begin + days, gap_end)
        stray = sql.execute(_FIRST_BETWEEN, _range(begin, end)).scalar()
        if stray is None:
            return begin, end, left_out
        day = _midnight(time_of(stray))
        if day > begin:
            return begin, day, left_out
        begin, left_out = day + _DAY, stray
    return None


def _note(found: Missing, now: datetime) -> None:
    if found.since < now:
        log.error("no partition of run_events was made in time: see `run_events_default`")
    if found.left_out is not None:
        log.warning(
            "the id of run %s lies in the future: events of its day get no partition",
            found.left_out,
        )


def _range(begin: datetime, end: datetime) -> dict[str, UUID]:
    return {"lower": bound(begin), "upper": bound(end)}


def _day_after_tomorrow(now: datetime) -> datetime:
    return _midnight(now) + 2 * _DAY


def _midnight(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def drop(tx: Transaction, partition: Partition) -> bool:
    """Drop the partition; returns False, and drops nothing, if a run of its time is left, or the
    events of a deleted one that were not forgotten, or if somebody uses the table for long.
    """
    dropped = "SELECT drop_run_events_partition(%(name)s)"
    is_gone = bool(tx.sql.exec_driver_sql(dropped, {"name": partition.name}).scalar())
    if is_gone:
        log.info("dropped %s, with the events of runs until %s", partition.name, partition.end)
    return is_gone
