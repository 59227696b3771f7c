"""The usage of an org's runs: in total, by day, by model, by end user, by metadata.

Sums of `run_usage`, exact to the last digit, with those of `usage_days` for the whole days of a
period that are summed up already. `run_usage` has a run from its end on, one row for each route
that the run has called; a run that never called a model is not in it. Credits are counted by the
run, each started one: hence the sums of runs before the sum of all. `usage_days` knows neither end
users nor metadata, of which an org may have as many as runs: such reports read the runs themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, CursorResult, Row, TextClause, text, update

from arkloop.shared.billing import usage_days
from arkloop.shared.billing.credits import CREDITS_PER_USD
from arkloop.shared.events.usage import TOKEN_FIELDS
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.billing import run_usage

_NAMES = ", ".join(TOKEN_FIELDS)
_TOKENS = ",\n    ".join(f"coalesce(sum({name}), 0)::bigint AS {name}" for name in TOKEN_FIELDS)
_FILTER = """
org_id = :org_id
    AND (:persona ::text IS NULL OR persona_key = :persona)
    AND (:api_key_id ::uuid IS NULL OR api_key_id = :api_key_id)
"""
_OF_END_USER = "/* of an end user */"
# What comes before the summed up days and after them, each read by the index.
_USED = f"""
SELECT used.* FROM unnest(:sinces ::timestamptz[], :untils ::timestamptz[]) AS part (since, until)
CROSS JOIN LATERAL (
    SELECT * FROM run_usage
    WHERE ended_at >= part.since AND ended_at < part.until AND {_FILTER} {_OF_END_USER}
) AS used
"""  # noqa: S608 - constant text
_DAYS = f"""
SELECT * FROM usage_days WHERE day >= :first_day AND day < :end_day AND {_FILTER}
"""  # noqa: S608 - constant text
# One row for each run, all rows of which have the same `ended_at`; and one for what is summed up.
_OF_RUNS = f"""
SELECT (ended_at AT TIME ZONE 'UTC')::date AS day, 1 AS runs, {_TOKENS},
    sum(cost_usd) AS cost_usd, ceil(sum(cost_usd) * {CREDITS_PER_USD}) AS credits
FROM ({_USED}) AS used GROUP BY run_id, ended_at
UNION ALL
SELECT day, runs, {_NAMES}, cost_usd, credits
FROM ({_DAYS}) AS days WHERE model IS NULL
"""  # noqa: S608 - constant text
_SUMS = f"""
    coalesce(sum(runs), 0)::bigint AS runs,
    {_TOKENS},
    coalesce(sum(cost_usd), 0) AS cost_usd,
    coalesce(sum(credits), 0)::bigint AS credits
"""


def _report(statement: str) -> tuple[TextClause, TextClause]:
    """Return the statement for all runs, and that for those of an end user, with its own index."""
    of_end_user = "AND end_user_id = :end_user_id"
    return text(statement), text(statement.replace(_OF_END_USER, of_end_user))


_TOTAL = _report(f"SELECT {_SUMS} FROM ({_OF_RUNS}) AS of_runs")  # noqa: S608 - constant text
_DAILY = _report(
    f"""
    SELECT of_all.day::date AS day, {_SUMS}
    FROM generate_series(:first ::timestamp, :last ::timestamp, interval '1 day') AS of_all (day)
    LEFT JOIN ({_OF_RUNS}) AS of_runs ON of_runs.day = of_all.day
    GROUP BY of_all.day ORDER BY of_all.day
    """  # noqa: S608 - constant text
)
_BY_MODEL = _report(
    f"""
    SELECT model, sum(runs)::bigint AS runs, {_TOKENS}, sum(cost_usd) AS cost_usd
    FROM (
        SELECT model, count(DISTINCT run_id) AS runs, {_TOKENS}, sum(cost_usd) AS cost_usd
        FROM ({_USED}) AS used GROUP BY model
        UNION ALL
        SELECT model, runs, {_NAMES}, cost_usd FROM ({_DAYS}) AS days WHERE model IS NOT NULL
    ) AS of_models
    GROUP BY model ORDER BY sum(cost_usd) DESC, model
    """  # noqa: S608 - constant text
)
_BY_VALUE = """
SELECT {value} AS value, count(DISTINCT run_id) AS runs, {tokens}, sum(cost_usd) AS cost_usd
FROM ({used}) AS used
GROUP BY 1 ORDER BY sum(cost_usd) DESC, 1 LIMIT :limit
"""
_BY_END_USER = _report(_BY_VALUE.format(value="end_user_id", tokens=_TOKENS, used=_USED))
_BY_METADATA = _report(_BY_VALUE.format(value="metadata ->> :key", tokens=_TOKENS, used=_USED))


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """A period: the runs that ended from `since` on and before `until`.

    With `persona` (a key, whatever the version), `api_key_id` or `end_user_id` those of it alone.
    """

    since: datetime
    until: datetime
    persona: str | None = None
    api_key_id: UUID | None = None
    end_user_id: str | None = None

    def parameters(self, org_id: UUID, summed_up: date | None = None) -> Mapping[str, Any]:
        """Return the statements' parameters; `usage_days` has all days before `summed_up`."""
        first = self.since.astimezone(UTC).date()
        if _start(first) < self.since:
            first += timedelta(days=1)
        end = min(self.until.astimezone(UTC).date(), summed_up or first)
        parts = [(self.since, self.until)]
        if first < end:
            parts = [(self.since, _start(first)), (_start(end), self.until)]
        return {
            "org_id": org_id,
            "sinces": [since for since, _ in parts],
            "untils": [until for _, until in parts],
            "first_day": first,
            "end_day": end,
            "persona": self.persona,
            "api_key_id": self.api_key_id,
            "end_user_id": self.end_user_id,
        }

    def days(self) -> tuple[date, date]:
        """Return the first and the last day, UTC."""
        last = self.until - timedelta(microseconds=1)
        return self.since.astimezone(UTC).date(), last.astimezone(UTC).date()


def total(sql: Connection, org_id: UUID, period: Period) -> Row[Any]:
    """Return `runs`, the token counts, `cost_usd` and `credits`."""
    return _read(sql, _TOTAL, period, _sums_of_days(sql, org_id, period)).one()


def daily(sql: Connection, org_id: UUID, period: Period) -> Sequence[Row[Any]]:
    """Return `total` for each `day` (UTC), oldest first, including days without ended runs."""
    first, last = period.days()
    values = {**_sums_of_days(sql, org_id, period), "first": first, "last": last}
    return _read(sql, _DAILY, period, values).all()


def by_model(sql: Connection, org_id: UUID, period: Period) -> Sequence[Row[Any]]:
    """Return `total` without credits for each `model`, the most expensive first.

    A run that has called two models counts as one of each.
    """
    return _read(sql, _BY_MODEL, period, _sums_of_days(sql, org_id, period)).all()


def by_end_user(sql: Connection, org_id: UUID, period: Period, *, limit: int) -> Sequence[Row[Any]]:
    """Return `total` without credits for each end user (`value`), the most expensive first.

    None is that of the runs without one.
    """
    values = {**period.parameters(org_id), "limit": limit}
    return _read(sql, _BY_END_USER, period, values).all()


def by_metadata(
    sql: Connection, org_id: UUID, period: Period, key: str, *, limit: int
) -> Sequence[Row[Any]]:
    """Return what `by_end_user` does for each `value` of this key of the runs' metadata."""
    values = {**period.parameters(org_id), "key": key, "limit": limit}
    return _read(sql, _BY_METADATA, period, values).all()


def set_metadata(tx: Transaction, run_id: UUID, metadata: Mapping[str, str]) -> None:
    """Set the metadata by which reports count a run; does nothing for one that has not ended."""
    tx.sql.execute(
        update(run_usage).where(run_usage.c.run_id == run_id).values(metadata=dict(metadata))
    )


def _sums_of_days(sql: Connection, org_id: UUID, period: Period) -> Mapping[str, Any]:
    is_known = period.end_user_id is None
    return period.parameters(org_id, usage_days.until(sql) if is_known else None)


def _read(
    sql: Connection,
    report: tuple[TextClause, TextClause],
    period: Period,
    values: Mapping[str, Any],
) -> CursorResult[Any]:
    return sql.execute(report[period.end_user_id is not None], values)


def _start(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
