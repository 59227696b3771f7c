"""The usage of orgs on past days, summed up once, so that reports read few rows.

The sweep adds a day an hour after its end (UTC), when no transaction that ended a run in it can
still be open. `usage_days_until` says which days are there; its row is the lock of both writers.
"""

from datetime import date, timedelta

from sqlalchemy import Connection, func, select, text

from shared.billing.credits import CREDITS_PER_USD
from shared.events.types import TOKEN_FIELDS
from shared.storage.connections import Connections, Transaction

_LOCK_KEY = 0x64617973  # "days"
#: A first start has the whole past to sum up.
DAYS_OF_A_PASS = 10

_TOKENS = ", ".join(TOKEN_FIELDS)
_SUMS = ", ".join(f"sum({name}) AS {name}" for name in TOKEN_FIELDS)
_USED = """
run_usage WHERE org_id = o.id
    AND ended_at >= :day ::timestamp AT TIME ZONE 'UTC'
    AND ended_at < (:day ::date + 1)::timestamp AT TIME ZONE 'UTC'
    AND (:run_id ::uuid IS NULL OR run_id = :run_id)
"""
# A run's rows have one end, persona and key. Credits are counted by the run, each started one.
_ADD = text(
    f"""
    INSERT INTO usage_days
        (org_id, day, persona_key, api_key_id, model, runs, {_TOKENS}, cost_usd, credits)
    SELECT o.id, :day, d.*
    FROM orgs o CROSS JOIN LATERAL (
        SELECT persona_key, api_key_id, NULL, count(*), {_SUMS}, sum(cost_usd),
            sum(ceil(cost_usd * {CREDITS_PER_USD}))
        FROM (
            SELECT persona_key, api_key_id, {_SUMS}, sum(cost_usd) AS cost_usd
            FROM {_USED} GROUP BY run_id, persona_key, api_key_id
        ) AS of_runs
        GROUP BY persona_key, api_key_id
        UNION ALL
        SELECT persona_key, api_key_id, model, count(DISTINCT run_id), {_SUMS}, sum(cost_usd), 0
        FROM {_USED} GROUP BY persona_key, api_key_id, model
    ) AS d
    WHERE :org_id ::uuid IS NULL OR o.id = :org_id
    """  # noqa: S608 - constant text
)
# By the index of each org: there is none by the time alone.
_FIRST = text(
    """
    SELECT (min(used.ended_at) AT TIME ZONE 'UTC')::date FROM orgs o CROSS JOIN LATERAL (
        SELECT ended_at FROM run_usage WHERE org_id = o.id ORDER BY ended_at LIMIT 1
    ) AS used
    """
)
_OVER = text("SELECT ((now() - interval '1 hour') AT TIME ZONE 'UTC')::date")
_UNTIL = "SELECT day FROM usage_days_until"


def until(sql: Connection) -> date | None:
    """Return the first day that is not summed up yet, None if no day is."""
    day: date | None = sql.scalar(text(_UNTIL))
    return day


def roll_up(connections: Connections) -> None:
    """Sum up the next days that are over, of all orgs.

    Raises:
        Unavailable: Postgres is out of reach.
    """
    for _ in range(DAYS_OF_A_PASS):
        if not _add_next(connections):
            break


def _add_next(connections: Connections) -> bool:
    """Return whether there was a day to add."""
    with connections.reading() as sql:
        day, over = until(sql), sql.scalar(_OVER)
    if day is not None and day >= over:
        return False
    with connections.transaction() as tx:
        if not tx.sql.scalar(select(func.pg_try_advisory_xact_lock(_LOCK_KEY))):
            return False
        day = tx.sql.scalar(text(f"{_UNTIL} FOR UPDATE"))
        if day is None:
            day = min(tx.sql.scalar(_FIRST) or over, over)
        if day >= over:
            _set_until(tx, day)
            return False
        tx.sql.execute(_ADD, {"day": day, "org_id": None, "run_id": None})
        _set_until(tx, day + timedelta(days=1))
        return True


def _set_until(tx: Transaction, day: date) -> None:
    tx.sql.execute(text("UPDATE usage_days_until SET day = :day"), {"day": day})
