"""The usage of orgs on past days, summed up once, so that reports read few rows.

The sweep adds a day an hour after its end (UTC), when no transaction that ended a run in it can
still be open. `usage_days_until` says which days are there; its row is the lock of both writers.
"""

from datetime import date, timedelta

from sqlalchemy import Connection, func, select, text, update

from arkloop.shared.billing.credits import CREDITS_PER_USD
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.billing import usage_days_until

_LOCK_KEY = 0x64617973  # "days"
#: A first start has the whole past to sum up.
DAYS_OF_A_PASS = 10

#: Parameters: `day`, `credits_per_usd`, and `org_id`, null for all orgs.
ADD = statement(__package__, "add_usage_day")
# By the index of each org: there is none by the time alone.
_FIRST = text(
    """
    SELECT (min(used.ended_at) AT TIME ZONE 'UTC')::date FROM orgs o CROSS JOIN LATERAL (
        SELECT ended_at FROM run_usage WHERE org_id = o.id ORDER BY ended_at LIMIT 1
    ) AS used
    """
)
_OVER = text("SELECT ((now() - interval '1 hour') AT TIME ZONE 'UTC')::date")
_UNTIL = select(usage_days_until.c.day)


def until(sql: Connection) -> date | None:
    """Return the first day that is not summed up yet, None if no day is."""
    return sql.scalar(_UNTIL)


def roll_up(connections: Connections) -> bool:
    """Sum up the next days that are over, of all orgs; returns whether more may be left.

    Raises:
        Unavailable: Postgres is out of reach.
    """
    return all(_add_next(connections) for _ in range(DAYS_OF_A_PASS))


def _add_next(connections: Connections) -> bool:
    """Return whether there was a day to add."""
    with connections.reading() as sql:
        day, over = until(sql), sql.scalar(_OVER)
    if day is not None and day >= over:
        return False
    with connections.transaction() as tx:
        if not tx.sql.scalar(select(func.pg_try_advisory_xact_lock(_LOCK_KEY))):
            return False
        day = tx.sql.scalar(_UNTIL.with_for_update())
        if day is None:
            day = min(tx.sql.scalar(_FIRST) or over, over)
        if day >= over:
            _set_until(tx, day)
            return False
        values = {"day": day, "credits_per_usd": CREDITS_PER_USD, "org_id": None}
        tx.sql.exec_driver_sql(ADD, values)
        _set_until(tx, day + timedelta(days=1))
        return True


def _set_until(tx: Transaction, day: date) -> None:
    tx.sql.execute(update(usage_days_until).values(day=day))
