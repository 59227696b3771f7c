"""The usage of orgs, summed up once, so that reports read few rows.

The sweep sums up each ten minutes once they are over, and a day (UTC) out of its intervals.
`usage_days_until` says what is there; its row is the lock of both writers. The statement for an
interval reads ten minutes' runs, and that for a day 144 rows at most for each org, persona, API key
and model.

A run that appeared in an interval after that would be missing for good. So an interval waits for
all transactions that began before its end: one that ends a run may wait for a standby at its
commit for as long as that is away.
"""

import logging
import time as clock
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from sqlalchemy import Connection, func, select, text, update

from arkloop.shared.billing.credits import CREDITS_PER_USD
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.billing import usage_days, usage_days_until, usage_intervals

log = logging.getLogger(__name__)

INTERVAL = timedelta(minutes=10)  # as in add_usage_intervals.sql
#: How long ago an interval has ended when it is summed up: the clock of a standby that becomes the
#: primary may be behind.
OVER = timedelta(minutes=10)
#: How long intervals stay once their day is summed up: a report may just have read that it is not.
KEPT = timedelta(days=2)
#: A pass ends after this time even if more is left: a first start has the whole past to sum up, and
#: the sweep finds no lost runs meanwhile.
PASS_SECONDS = 3.0
_LOCK_KEY = 0x64617973  # "days"

#: Parameters: `day`, and `org_id`, null for all orgs.
ADD_DAY = statement(__package__, "add_usage_day")
#: Parameters: `since`, `until`, `credits_per_usd`, and `org_id`, null for all orgs.
ADD_INTERVALS = statement(__package__, "add_usage_intervals")
# By the index of each org: there is none by the time alone.
_FIRST = text(
    """
    SELECT (min(used.ended_at) AT TIME ZONE 'UTC')::date FROM orgs o CROSS JOIN LATERAL (
        SELECT ended_at FROM run_usage WHERE org_id = o.id ORDER BY ended_at LIMIT 1
    ) AS used
    """
)
# The end of a run has the time of its statement, hence one after the begin of its transaction. Of
# another role's sessions Postgres does not say when theirs began.
_IS_OPEN = text(
    """
    SELECT EXISTS (
        SELECT FROM pg_stat_activity
        WHERE datname = current_database() AND backend_xid IS NOT NULL
            AND (xact_start IS NULL OR xact_start < :until) AND pid <> pg_backend_pid()
    )
    """
)


@dataclass(frozen=True, slots=True)
class Progress:
    """`usage_days` has every day before `day`; `usage_intervals` what follows, until `interval`."""

    day: date
    interval: datetime

    def due(self, now: datetime) -> date | tuple[datetime, datetime] | None:
        """Return the next day to sum up, or the beginning and the end of the next interval; None if
        neither is over.
        """
        tomorrow = start_of(self.day + timedelta(days=1))
        if self.interval >= tomorrow:
            return self.day
        until = self.interval + INTERVAL
        return (self.interval, until) if until <= now - OVER else None

    def is_ahead(self, now: datetime) -> bool:
        """Return whether Postgres' clock was set back: runs end again in what is summed up."""
        return self.interval > now - OVER + INTERVAL


def start_of(day: date) -> datetime:
    """Return the first moment of a day, UTC."""
    return datetime.combine(day, time(), UTC)


def interval_of(moment: datetime) -> datetime:
    """Return the beginning of the interval that a moment is in, UTC."""
    at = moment.astimezone(UTC)
    return at.replace(minute=at.minute // 10 * 10, second=0, microsecond=0)


def progress(sql: Connection) -> Progress | None:
    """Return what is summed up, None before the first pass."""
    day, interval = sql.execute(select(usage_days_until)).one()
    if day is None:
        return None
    return Progress(day, max(interval or start_of(day), start_of(day)).astimezone(UTC))


def roll_up(connections: Connections) -> bool:
    """Sum up the next intervals and days that are over, of all orgs; returns whether more may be
    left.

    Raises:
        Unavailable: Postgres is out of reach.
    """
    ends_at = clock.monotonic() + PASS_SECONDS
    while add_next(connections):
        if clock.monotonic() > ends_at:
            return True
    return False


def add_next(connections: Connections) -> bool:
    """Sum up the next day, or the next interval; returns whether one was due.

    Raises:
        Unavailable: Postgres is out of reach.
    """
    with connections.reading() as sql:
        found = progress(sql)
        now = _now(sql)
        if found is not None and found.due(now) is None and not found.is_ahead(now):
            return False
    with connections.transaction() as tx:
        if not tx.sql.scalar(select(func.pg_try_advisory_xact_lock(_LOCK_KEY))):
            return False
        locked = select(usage_days_until).with_for_update(skip_locked=True)
        if not tx.sql.execute(locked).all():  # an org is being copied into this installation
            return False
        found, now = progress(tx.sql), _now(tx.sql)
        if found is None:
            today = now.astimezone(UTC).date()
            # There are some if an operator has them all made again.
            tx.sql.execute(usage_intervals.delete())
            _note(tx, day=min(tx.sql.scalar(_FIRST) or today, today), interval_at=None)
            return True
        if found.is_ahead(now):
            first, today = tx.sql.scalar(_FIRST), now.astimezone(UTC).date()
            # A clock may be wrong while it is in the past, too: before NTP has set it.
            if first is None or first > today:
                return False  # nothing has ended in what is summed up
            _begin_again(tx, min(found.day, today))
            return True
        match found.due(now):
            case None:
                return False
            case (since, until):
                if tx.sql.scalar(_IS_OPEN, {"until": until}):
                    return False
                _add_interval(tx, since, until)
            case day:
                tx.sql.exec_driver_sql(ADD_DAY, {"day": day, "org_id": None})
                _note(tx, day=day + timedelta(days=1))
        return True


def _begin_again(tx: Transaction, day: date) -> None:
    """Forget the sums from a day on: its intervals may be deleted, so that all of it is read."""
    log.warning("the clock of Postgres was set back: usage since %s is summed up again", day)
    tx.sql.execute(usage_days.delete().where(usage_days.c.day >= day))
    tx.sql.execute(usage_intervals.delete().where(usage_intervals.c.began_at >= start_of(day)))
    _note(tx, day=day, interval_at=None)


def _add_interval(tx: Transaction, since: datetime, until: datetime) -> None:
    """Sum up an interval, and delete one that is not read any more."""
    values = {"since": since, "until": until, "org_id": None, "credits_per_usd": CREDITS_PER_USD}
    tx.sql.exec_driver_sql(ADD_INTERVALS, values)
    tx.sql.execute(usage_intervals.delete().where(usage_intervals.c.began_at < until - KEPT))
    _note(tx, interval_at=until)


def _note(tx: Transaction, **progress: date | datetime | None) -> None:
    tx.sql.execute(update(usage_days_until).values(**progress))


def _now(sql: Connection) -> datetime:
    return sql.execute(select(func.now())).scalar_one()
