"""The usage of an org's runs: in total, by day, by model, by end user, by metadata.

Sums of `run_usage`, exact to the last digit, with those of `usage_days` and `usage_intervals` for
what is summed up already of a period. `run_usage` has a run from its end on, one row for each route
that the run has called; a run that never called a model is not in it. Credits are counted by the
run, each started one: hence the sums of runs before the sum of all. What is summed up knows neither
end users nor metadata, of which an org may have as many as runs: such reports read the runs
themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, update

from arkloop.shared.billing import spending, usage_sums
from arkloop.shared.billing.credits import CREDITS_PER_USD
from arkloop.shared.billing.usage_sums import INTERVAL, Progress, interval_of, start_of
from arkloop.shared.events.usage import TOKEN_FIELDS
from arkloop.shared.storage.arrays import is_among
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.billing import run_usage

# Each is planned for the values that it is sent with, which say what index it needs: it must not
# be prepared (`api/http/reports.py`).
_BY_DAY = statement(__package__, "usage_by_day")
_BY_MODEL = statement(__package__, "usage_by_model")
_BY_VALUE = statement(__package__, "usage_by_value")

Sums = Mapping[Any, Any]
_NOTHING: Sums = {
    "runs": 0,
    **dict.fromkeys(TOKEN_FIELDS, 0),
    "cost_usd": Decimal(0),
    "credits": 0,
}


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

    def parameters(self, org_id: UUID, summed_up: Progress | None = None) -> Mapping[str, Any]:
        """Return the statements' parameters; what is summed up is not read run by run."""
        first = self.since.astimezone(UTC).date()
        if start_of(first) < self.since:
            first += timedelta(days=1)
        end = min(self.until.astimezone(UTC).date(), summed_up.day if summed_up else first)
        before, since = [], self.since
        if first < end:
            before, since = [(self.since, start_of(first))], start_of(end)
        first_interval, end_interval = _intervals(since, self.until, summed_up)
        parts = [*before, (since, first_interval), (end_interval, self.until)]
        return {
            **self._filters(org_id),
            "sinces": [since for since, _ in parts],
            "untils": [until for _, until in parts],
            "first_interval": first_interval,
            "end_interval": end_interval,
            "first_day": first,
            "end_day": end,
            "credits_per_usd": CREDITS_PER_USD,
        }

    def whole(self, org_id: UUID) -> Mapping[str, Any]:
        """Return the parameters of a statement that reads the runs themselves."""
        return {**self._filters(org_id), "since": self.since, "until": self.until}

    def _filters(self, org_id: UUID) -> Mapping[str, Any]:
        return {
            "org_id": org_id,
            "persona": self.persona,
            "api_key_id": self.api_key_id,
            "end_user_id": self.end_user_id,
        }

    def days(self) -> tuple[date, date]:
        """Return the first and the last day, UTC."""
        last = self.until - timedelta(microseconds=1)
        return self.since.astimezone(UTC).date(), last.astimezone(UTC).date()


def total(sql: Connection, org_id: UUID, period: Period) -> Sums:
    """Return `runs`, the token counts, `cost_usd` and `credits`."""
    return _by_day(sql, org_id, period)[None]


def daily(sql: Connection, org_id: UUID, period: Period) -> Mapping[date, Sums]:
    """Return `total` for each day (UTC), oldest first, including days without ended runs."""
    first, last = period.days()
    by_day = _by_day(sql, org_id, period)
    days = (first + timedelta(days=number) for number in range((last - first).days + 1))
    return {day: by_day.get(day, _NOTHING) for day in days}


def by_model(sql: Connection, org_id: UUID, period: Period) -> Sequence[Sums]:
    """Return `total` without credits for each `model`, the most expensive first.

    A run that has called two models counts as one of each.
    """
    return _read(sql, _BY_MODEL, _parameters(sql, org_id, period))


def by_end_user(sql: Connection, org_id: UUID, period: Period, *, limit: int) -> Sequence[Sums]:
    """Return `total` without credits for each end user (`value`), the most expensive first.

    None is that of the runs without one.
    """
    return _read(sql, _BY_VALUE, {**period.whole(org_id), "key": None, "limit": limit})


def by_metadata(
    sql: Connection, org_id: UUID, period: Period, key: str, *, limit: int
) -> Sequence[Sums]:
    """Return what `by_end_user` does for each `value` of this key of the runs' metadata."""
    return _read(sql, _BY_VALUE, {**period.whole(org_id), "key": key, "limit": limit})


def set_metadata(tx: Transaction, run_id: UUID, metadata: Mapping[str, str]) -> None:
    """Set the metadata by which reports count a run; does nothing for one that has not ended."""
    tx.sql.execute(
        update(run_usage).where(run_usage.c.run_id == run_id).values(metadata=dict(metadata))
    )


def forget_runs(tx: Transaction, run_ids: Sequence[UUID]) -> None:
    """Take the names and metadata off what these runs have used; the amounts stay.

    It comes after the deletion of the runs: a change of their metadata locks these first.
    """
    is_theirs = is_among(run_usage.c.run_id, run_ids)
    tx.sql.execute(update(run_usage).where(is_theirs).values(end_user_id=None, metadata={}))


def forget_end_user(tx: Transaction, org_id: UUID, end_user_id: str) -> None:
    """Take an end user's name off what their runs have used; the amounts stay."""
    tx.sql.execute(
        update(run_usage)
        .where(run_usage.c.org_id == org_id, run_usage.c.end_user_id == end_user_id)
        .values(end_user_id=None, metadata={})
    )
    spending.forget_end_user(tx.sql, org_id, end_user_id)


def _by_day(sql: Connection, org_id: UUID, period: Period) -> Mapping[date | None, Sums]:
    rows = _read(sql, _BY_DAY, _parameters(sql, org_id, period))
    return {row["day"]: row for row in rows}


def _parameters(sql: Connection, org_id: UUID, period: Period) -> Mapping[str, Any]:
    is_known = period.end_user_id is None
    return period.parameters(org_id, usage_sums.progress(sql) if is_known else None)


def _read(sql: Connection, report: str, values: Mapping[str, Any]) -> Sequence[Sums]:
    return sql.exec_driver_sql(report, dict(values)).mappings().all()


def _intervals(
    since: datetime, until: datetime, summed_up: Progress | None
) -> tuple[datetime, datetime]:
    """Return where the intervals of a period that are summed up begin and end; twice its end if
    there are none.
    """
    if summed_up is not None and since < summed_up.interval:
        first = interval_of(since)
        if first < since:
            first += INTERVAL
        first = max(first, start_of(summed_up.day))
        end = min(interval_of(until), summed_up.interval)
        if first < end:
            return first, end
    return until, until
