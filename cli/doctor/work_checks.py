"""Work: workers that are alive, runs that wait or hang, and what the sweep should have done."""

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, timedelta

from redis import RedisError
from sqlalchemy import Connection, text

from arkloop.cli.doctor.findings import Finding, fail, ok, warn
from arkloop.shared.billing import usage_sums
from arkloop.shared.config import Settings
from arkloop.shared.runs import live_workers
from arkloop.shared.storage import epoch
from arkloop.shared.storage.connections import connect_redis
from arkloop.shared.storage.task_messages import QUEUE

#: Seconds. An idle worker takes a queued run at once, or within 2 s if its message was lost.
_LATE = 30.0
#: Seconds. A worker that listens to the queue takes a message within milliseconds.
_LEFT = 0.5
#: How long after their end runs are in the sums of usage at the latest.
_SUMMED_UP = timedelta(hours=1)

# In the future by more than a second: a run may be queued while the doctor looks.
_QUEUED = text(
    """
    SELECT count(*), coalesce(extract(epoch FROM now() - min(queued_at)), 0)::float8,
        count(*) FILTER (WHERE queued_at > now() + interval '1 second'),
        coalesce(extract(epoch FROM max(queued_at) - now()), 0)::float8
    FROM runs WHERE state = 'queued' AND agent IS NULL
        AND org_id NOT IN (SELECT id FROM orgs WHERE suspended_at IS NOT NULL)
    """
)

# Of those that could be attempted: shared/delivery/sql/claim.sql has the same conditions.
_LATE_DELIVERIES = """
    SELECT count(*) FROM (
        SELECT FROM webhook_endpoints e
        JOIN webhook_deliveries d ON d.endpoint_id = e.id AND d.state = 'pending'
            AND d.due_at < now() - interval '1 minute'
        WHERE e.is_enabled AND (SELECT o.moved_to FROM orgs o WHERE o.id = e.org_id) IS NULL
            AND NOT EXISTS (
                SELECT FROM webhook_deliveries earlier
                WHERE earlier.endpoint_id = d.endpoint_id AND earlier.ordered_by = d.ordered_by
                    AND earlier.seq < d.seq AND earlier.state NOT IN ('delivered', 'dead')
            )
        LIMIT 100000
    ) AS late
"""


def _runs(settings: Settings, sql: Connection) -> Iterator[Finding]:
    """Look at the workers and what waits for them."""
    alive = live_workers.of_service(sql, settings.heartbeat_seconds)
    queued, *times = sql.execute(_QUEUED).one()
    yield _workers(alive, queued)
    yield from _silent(settings, sql)
    yield _queue(alive, queued, *times)


def _workers(alive: int, queued: int) -> Finding:
    if alive:
        return ok("workers", f"{alive} alive")
    advice = "Start the Procfile's `worker`; if it runs, its log says what it waits for."
    if queued:
        return fail("workers", f"none is alive, and {queued} runs are queued", advice)
    return warn("workers", "none is alive: runs would stay queued", advice)


def _silent(settings: Settings, sql: Connection) -> Iterator[Finding]:
    """Find workers that stopped without deleting their row."""
    rows = sql.execute(
        text(
            "SELECT hostname, pid, extract(epoch FROM now() - seen_at)::int AS seconds FROM workers"
            " WHERE org_id IS NULL AND seen_at < now() - make_interval(secs => :silence)"
            " AND seen_at > now() - interval '1 hour' ORDER BY seen_at DESC LIMIT 5"
        ),
        {"silence": settings.heartbeat_seconds * live_workers.SILENT_HEARTBEATS},
    ).all()
    for row in rows:
        yield warn(
            "workers",
            f"{row.hostname} (pid {row.pid}) was last heard {row.seconds} s ago",
            "It was killed, is frozen or cut off; if nobody replaced it, start another one.",
        )


def _queue(alive: int, queued: int, oldest: float, ahead: int, last: float) -> Finding:
    if ahead:
        return warn(
            "queue",
            f"{ahead} of {queued} runs are queued in the future, the last one in {last:.0f} s",
            "Postgres' clock was set back. The next sweep corrects their times: if they stay, start"
            " a process that sweeps, a `web` or a `worker`.",
        )
    shown = f"{queued} runs, the oldest for {oldest:.0f} s" if queued else "empty"
    if oldest < _LATE:
        return ok("queue", shown)
    advice = (
        "Start more workers, if they are busy; `arkloop admin explain` says what a run waits for."
        if alive
        else "Start a worker."
    )
    return warn("queue", shown, advice)


def _messages(settings: Settings, sql: Connection) -> Iterator[Finding]:
    """Find messages that stay in the broker although workers are alive and no run is queued."""
    list_ = f"{epoch.installation_of(sql)}:{QUEUE}"
    if not (count := _left_in(settings.broker_url, list_)):
        return
    queued = sql.scalar(
        text(
            "SELECT EXISTS (SELECT FROM runs WHERE state = 'queued' AND agent IS NULL"
            " AND org_id NOT IN (SELECT id FROM orgs WHERE suspended_at IS NOT NULL))"
        )
    )
    if not queued and live_workers.of_service(sql, settings.heartbeat_seconds):
        messages = "1 message is" if count == 1 else f"{count} messages are"
        yield warn(
            "queue messages",
            f"{messages} left in the broker, although no run is queued",
            "Restart the workers, with the URLs of Postgres and the broker that web processes have:"
            " they listen to another queue, and runs start up to 2 s late. No restart is necessary"
            " while all their slots are in use.",
        )


def _left_in(url: str, list_: str) -> int:
    """Return how many messages the list has if nobody takes the oldest one for a moment."""
    broker = connect_redis(url)
    try:
        oldest = broker.lindex(list_, -1)
        if oldest is None:
            return 0
        time.sleep(_LEFT)
        return int(broker.llen(list_)) if broker.lindex(list_, -1) == oldest else 0
    except (RedisError, OSError, TypeError, ValueError):
        return 0  # `redis_checks` finds the reason
    finally:
        broker.close()


def _stuck(settings: Settings, sql: Connection) -> Iterator[Finding]:
    """Find runs of lost workers that no sweep has found: one runs in every process."""
    count = sql.scalar(
        text(
            "SELECT count(*) FROM runs r LEFT JOIN workers w ON w.id = r.owner"
            " WHERE r.state = 'executing' AND r.agent IS NULL"
            " AND (w.id IS NULL OR w.seen_at < now() - make_interval(secs => :patience))"
        ),
        {"patience": 3 * settings.lease_seconds + settings.sweep_seconds},
    )
    if count:
        yield fail(
            "sweep",
            f"{count} runs belong to workers that are gone, and no sweep has queued them again",
            "Start a web or worker process: each of them sweeps. Their logs say why they do not."
            if live_workers.of_service(sql, settings.heartbeat_seconds)
            else "Start a worker: while none is alive, sweeps assume that Postgres was away, and"
            " do not requeue the runs of silent workers.",
        )


def _retention(_settings: Settings, sql: Connection) -> Iterator[Finding]:
    query = "SELECT count(*) FROM forgotten_events WHERE collect_at < now() - interval '1 hour'"
    if count := sql.scalar(text(query)):
        yield warn(
            "retention",
            f"{count} deleted runs whose events are still stored for more than an hour",
            'Look for "tidying up failed" in the logs, and for a lock on run_events.',
        )


def _webhooks(_settings: Settings, sql: Connection) -> Iterator[Finding]:
    if count := sql.scalar(text(_LATE_DELIVERIES)):
        yield warn(
            "webhooks",
            f"{count} deliveries that are due for more than a minute",
            "Start a worker, or see which endpoint fails: docs/how-to/operations.md",
        )


# By the index of each org: there is none by the time alone.
_RUNS_WITHOUT_SUM = text(
    """
    SELECT now() - :summed_up > :since AND EXISTS (
        SELECT FROM orgs o CROSS JOIN LATERAL (
            SELECT FROM run_usage WHERE org_id = o.id
                AND ended_at >= :since AND ended_at < now() - :summed_up LIMIT 1
        ) AS used
    )
    """
)
_OLDEST_WRITER = text(
    """
    SELECT pid, extract(epoch FROM now() - xact_start)::int AS seconds FROM pg_stat_activity
    WHERE datname = current_database() AND backend_xid IS NOT NULL
        AND xact_start < now() - :summed_up
    ORDER BY xact_start LIMIT 1
    """
)


def _usage(_settings: Settings, sql: Connection) -> Iterator[Finding]:
    """Find runs that the sweep should have added to the sums of usage long ago."""
    found, values = usage_sums.progress(sql), {"summed_up": _SUMMED_UP}
    if found is None or not sql.scalar(_RUNS_WITHOUT_SUM, values | {"since": found.interval}):
        return
    writer = sql.execute(_OLDEST_WRITER, values).one_or_none()
    yield warn(
        "usage",
        f"runs that ended after {found.interval.astimezone(UTC):%Y-%m-%d %H:%M} UTC are not summed"
        " up: reports read them one by one, and take longer each hour",
        f"Process {writer.pid} of Postgres has written in a transaction that began"
        f" {writer.seconds:,} s ago: let it end, or use pg_terminate_backend({writer.pid})."
        if writer
        else 'Look for "tidying up failed: sums of usage" in the logs of web and worker processes,'
        " and for a transaction that another role has left open.",
    )


#: By the name of the finding where one cannot be carried out; a migrated database is required.
CHECKS: Mapping[str, Callable[[Settings, Connection], Iterator[Finding]]] = {
    "workers": _runs,
    "queue messages": _messages,
    "sweep": _stuck,
    "retention": _retention,
    "webhooks": _webhooks,
    "usage": _usage,
}
