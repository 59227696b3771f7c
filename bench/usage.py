"""Usage reports of an org with many runs in the last 24 hours: run by run, and once they are summed
up; and how long that takes.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text

from arkloop.shared.billing import usage_reports, usage_sums
from arkloop.shared.billing.usage_reports import Period
from arkloop.shared.config import Settings
from arkloop.shared.storage.connections import Connections, connect
from arkloop.shared.storage.postgres import COMMAND_TIMEOUTS, MAINTENANCE_TIMEOUTS
from bench.figure import Figure, Limit, percentile
from bench.service import Service

RUNS, SHORT_RUNS = (100_000, 1_000_000), (2_000,)
REPORTS = {
    "total": usage_reports.total,
    "by day": usage_reports.daily,
    "by model": usage_reports.by_model,
}
SAMPLES, SHORT_SAMPLES = 20, 3
#: Beyond it an org has to rest between its reports.
MOST_MS = 100.0
#: Evenly over the time until now, of 3 personas, 5 API keys or none, and 4 models.
_USAGE = text("""
INSERT INTO run_usage (run_id, route_id, org_id, user_id, persona_key, api_key_id, model,
    input_tokens, output_tokens, usage_source, cost_usd, ended_at, month)
SELECT gen_random_uuid(), 'r', :org_id, :org_id, 'persona-' || n % 3,
    (ARRAY[:a, :b, :c, :d, :e, NULL]::uuid[])[1 + n % 6], 'model-' || n % 4, 100, 20, 'reported',
    0.0123, now() - n * (interval '24 hours' / :runs), date_trunc('month', now())
FROM generate_series(1, :runs) AS n
""")
_ANALYZE = text("ANALYZE run_usage")


def measure(*, short: bool = False) -> Iterator[Figure]:
    """Measure each number of runs in an org and a database of its own."""
    for runs in SHORT_RUNS if short else RUNS:
        with Service(web=0, workers=0) as service:
            settings = replace(Settings.from_env(service.environ), prepared_statements=False)
            connections = connect(settings, application="bench", timeouts=MAINTENANCE_TIMEOUTS)
            patient = connections.with_pool(application="bench", size=1, timeouts=COMMAND_TIMEOUTS)
            org_id = service.owner.org_id
            with patient.transaction() as tx:
                keys = {name: str(UUID(int=n)) for n, name in enumerate("abcde")}
                tx.sql.execute(_USAGE, {"org_id": org_id, "runs": runs, **keys})
                tx.sql.execute(_ANALYZE)
            yield from _measure(connections, org_id, runs, SHORT_SAMPLES if short else SAMPLES)
            patient.close_pool()
            connections.close()


def _measure(connections: Connections, org_id: UUID, runs: int, samples: int) -> Iterator[Figure]:
    scale, now = ("runs", float(runs)), datetime.now(UTC)
    period = Period(since=now - timedelta(days=5), until=now + timedelta(days=1))
    before = {name: _report(connections, org_id, period, name, samples) for name in REPORTS}
    steps, is_left = [], True
    while is_left:
        began = time.perf_counter()
        is_left = usage_sums.add_next(connections)
        steps.append(time.perf_counter() - began)
    with connections.reading() as sql:
        done = usage_sums.progress(sql)
    assert done is not None and now - done.interval <= 2 * usage_sums.INTERVAL
    yield Figure(
        name=f"sum up the usage of {runs:,} runs: the slowest step of {len(steps)}; all",
        unit="s",
        numbers={"slowest": max(steps), "all": sum(steps)},
        count=runs,
        at_most={"slowest": MAINTENANCE_TIMEOUTS.statement},
        scale=scale,
    )
    different = 0
    for name, (found, seconds) in before.items():
        found_later, seconds_later = _report(connections, org_id, period, name, samples)
        different += found != found_later
        yield Figure(
            name=f"report of {runs:,} runs of a day, {name}",
            unit="ms",
            numbers={
                "p50": statistics.median(seconds_later) * 1000,
                "p99": percentile(seconds_later, 0.99) * 1000,
            },
            count=samples,
            at_most={"p99": MOST_MS},
            limit=Limit(name="run by run", of="p50", value=statistics.median(seconds) * 1000),
            scale=scale,
        )
    yield Figure(
        name=f"reports of {runs:,} runs that differ from their sums run by run",
        unit="reports",
        numbers={"different": different},
        count=len(REPORTS),
        at_most={"different": 0},
        is_promise=True,
    )


def _report(
    connections: Connections, org_id: UUID, period: Period, name: str, samples: int
) -> tuple[Any, list[float]]:
    """Return the report of a period, and the seconds that each try took."""
    seconds = []
    for _ in range(samples):
        with connections.reading() as sql:
            began = time.perf_counter()
            found = REPORTS[name](sql, org_id, period)
            seconds.append(time.perf_counter() - began)
    return found, seconds
