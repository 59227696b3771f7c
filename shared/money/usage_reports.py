"""What an org's runs have used: in all, by the day, by the model.

Sums of `run_usage`, exact to the last digit. It has a run from its end on, one row for each route
that the run has called; a run that never called a model is not in it. Credits are counted by the
run, each started one: hence the sums of runs before the sum of all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from shared.events import TOKEN_FIELDS
from shared.money.credits import CREDITS_PER_USD

_TOKENS = ",\n    ".join(f"coalesce(sum({name}), 0)::bigint AS {name}" for name in TOKEN_FIELDS)
_WHERE = """
org_id = :org_id AND ended_at >= :since AND ended_at < :until
    AND (:persona ::text IS NULL OR persona_key = :persona)
    AND (:api_key_id ::uuid IS NULL OR api_key_id = :api_key_id)
"""
# One row for each run; all rows of a run have the same `ended_at`.
_OF_RUNS = f"""
SELECT run_id, ended_at, {_TOKENS}, sum(cost_usd) AS cost_usd
FROM run_usage WHERE {_WHERE} GROUP BY run_id, ended_at
"""  # noqa: S608 - text of ours
_SUMS = f"""
    count(run_id) AS runs,
    {_TOKENS},
    coalesce(sum(cost_usd), 0) AS cost_usd,
    coalesce(sum(ceil(cost_usd * {CREDITS_PER_USD})), 0)::bigint AS credits
"""
_TOTAL = text(f"SELECT {_SUMS} FROM ({_OF_RUNS}) AS of_runs")  # noqa: S608 - text of ours
_DAILY = text(
    f"""
    SELECT day::date AS day, {_SUMS}
    FROM generate_series(:first ::timestamp, :last ::timestamp, interval '1 day') AS day
    LEFT JOIN ({_OF_RUNS}) AS of_runs ON date_trunc('day', ended_at AT TIME ZONE 'UTC') = day
    GROUP BY day ORDER BY day
    """  # noqa: S608 - text of ours
)
_BY_MODEL = text(
    f"""
    SELECT model, count(DISTINCT run_id) AS runs, {_TOKENS}, sum(cost_usd) AS cost_usd
    FROM run_usage WHERE {_WHERE} GROUP BY model ORDER BY sum(cost_usd) DESC, model
    """  # noqa: S608 - text of ours
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """Of which runs: those that ended from `since` on and before `until`.

    With `persona` (a key, whatever the version) or `api_key_id` those of it alone.
    """

    since: datetime
    until: datetime
    persona: str | None = None
    api_key_id: UUID | None = None

    def parameters(self, org_id: UUID) -> Mapping[str, Any]:
        return {
            "org_id": org_id,
            "since": self.since,
            "until": self.until,
            "persona": self.persona,
            "api_key_id": self.api_key_id,
        }

    def days(self) -> tuple[date, date]:
        """The first and the last, UTC."""
        last = self.until - timedelta(microseconds=1)
        return self.since.astimezone(UTC).date(), last.astimezone(UTC).date()


def total(sql: Connection, org_id: UUID, period: Period) -> Row[Any]:
    """`runs`, the token counts, `cost_usd` and `credits`."""
    return sql.execute(_TOTAL, period.parameters(org_id)).one()


def daily(sql: Connection, org_id: UUID, period: Period) -> Sequence[Row[Any]]:
    """As `total` for each `day` (UTC) of the period, the oldest first, also where nothing ended."""
    first, last = period.days()
    values = {**period.parameters(org_id), "first": first, "last": last}
    return sql.execute(_DAILY, values).all()


def by_model(sql: Connection, org_id: UUID, period: Period) -> Sequence[Row[Any]]:
    """As `total`, but without credits, for each `model`, the dearest first.

    A run that has called two models counts as one of each.
    """
    return sql.execute(_BY_MODEL, period.parameters(org_id)).all()
