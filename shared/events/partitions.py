"""The partitions of the table of events: each has the runs of some days, by their ids.

Ids of runs begin with their time. The first partition has all that came before the table had
partitions, the default one whatever belongs to none: it has rows only if no partition could be made
for weeks, or the clock of a host is wrong. The database's own functions make and drop partitions,
since the service's role may own no table (see migration 62).
"""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection, func, select, text

from arkloop.shared.storage.connections import Connections, Transaction

log = logging.getLogger(__name__)

_LOCK_KEY = 0x7061727473  # "parts"

#: A part of the retention is in one partition: what is dropped at once has waited for that long.
PARTS = 6
_DAY = timedelta(days=1)
_EPOCH = datetime.fromtimestamp(0, UTC)

#: Name and bounds of each partition that has an end.
READ = """
SELECT name, lower_id, upper_id FROM run_events_partitions()
WHERE upper_id IS NOT NULL ORDER BY upper_id
"""

_FIRST_BETWEEN = text(
    "SELECT run_id FROM run_events WHERE run_id >= :lower AND run_id < :upper"
    " ORDER BY run_id LIMIT 1"
)


class Partition(NamedTuple):
    """A partition for ids from `lower` on, or for all, and below `upper`."""

    name: str
    lower: UUID | None
    upper: UUID

    @property
    def end(self) -> datetime:
        """Return the time before which its runs were created."""
        return time_of(self.upper)


def width(retention_days: int) -> timedelta:
    """Return for how long runs go to the same partition."""
    return max(_DAY, retention_days // PARTS * _DAY)


def bound(moment: datetime) -> UUID:
    """Return the lowest id that a run of this time can have."""
    return UUID(int=(moment - _EPOCH) // timedelta(milliseconds=1) << 80)


def time_of(run_id: UUID) -> datetime:
    """Return the time in an id."""
    return _EPOCH + timedelta(milliseconds=run_id.int >> 80)


def read(sql: Connection) -> Sequence[Partition]:
    """Return the partitions that have an end, in their order."""
    return [Partition(*row) for row in sql.exec_driver_sql(READ)]


def add_ahead(connections: Connections) -> bool:
    """Make the next partition unless there is one for the days after these; returns whether it did.

    Where somebody uses the table for long, such as a dump, it is left to the next call.

    Raises:
        Unavailable: Postgres is out of reach.
    """
    days = width(connections.settings.retention_days)
    with connections.transaction() as tx:
        if not tx.sql.scalar(select(func.pg_try_advisory_xact_lock(_LOCK_KEY))):
            return False
        now: datetime = tx.sql.exec_driver_sql("SELECT now()").scalar_one()
        made = read(tx.sql)
        if not made or made[-1].end > now + days:
            return False
        # What came after the last one is in the default partition, and stays there.
        is_late = made[-1].end < now
        begin = _midnight(now) + 2 * _DAY if is_late else made[-1].end
        if is_late:
            log.error("no partition of run_events was made in time: see `run_events_default`")
        begin, end = _free(tx.sql, begin, days)
        added = "SELECT add_run_events_partition(%(lower)s, %(upper)s)"
        return bool(tx.sql.exec_driver_sql(added, _range(begin, end)).scalar())


def _free(sql: Connection, begin: datetime, days: timedelta) -> tuple[datetime, datetime]:
    """Return begin and end of the first days from `begin` on, at most `days`, of which no event is
    stored yet: Postgres makes no partition for rows that the default one has.
    """
    while (stray := sql.execute(_FIRST_BETWEEN, _range(begin, begin + days)).scalar()) is not None:
        day = _midnight(time_of(stray))
        if day > begin:
            return begin, day
        log.warning("run %s is of the future: events of its day get no partition", stray)
        begin = day + _DAY
    return begin, begin + days


def _range(begin: datetime, end: datetime) -> dict[str, UUID]:
    return {"lower": bound(begin), "upper": bound(end)}


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
