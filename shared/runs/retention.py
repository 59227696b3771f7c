"""The deletion of what is too old: runs with their events, responses, deliveries, dead workers.
Deliveries that wait for a deleted endpoint go sooner.

A run goes in two steps. Its row goes first, and with it everything by which
anybody could reach it: requests get 404, and its id is noted in
`forgotten_events`. Its events, which may be very many, go later, with those of
all runs of some days: when no run of their partition is left, that is dropped.

Where it will not be dropped soon, since it is one of a longer retention, or
something else has deleted the run, events are collected bit by bit, the last
ones first: a stream that began before meets an early end, never a hole. Each bit
is a transaction of its own that lasts for some milliseconds and locks nothing
that others want.
"""

import logging
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from redis.exceptions import RedisError
from sqlalchemy import delete, exists, func, select, update

from arkloop.shared.billing import spending
from arkloop.shared.delivery import deliveries
from arkloop.shared.events import partitions
from arkloop.shared.outage_log import OutageLog
from arkloop.shared.storage import idempotency
from arkloop.shared.storage.arrays import is_among, plain_array
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import forgotten_events, workers

_streams = OutageLog(logging.getLogger(__name__), "deleting events from Redis")

_LOCK_KEY = 0x666F72676574  # "forget"

#: What one transaction deletes at most.
RUNS_AT_ONCE = 100
ANSWERS_AT_ONCE = 500
WAITS_AT_ONCE = 5_000
#: Transactions of each kind in one pass, so that the sweep comes round in time.
BITS_OF_A_PASS = 10
#: Who has begun to read a run reads it to its end, unless they are very slow.
READERS_LEAVE_SECONDS = 60
#: Events of deleted runs that Redis may still have are looked for after this.
REDIS_RETURNS = timedelta(seconds=30)
WORKERS_KEPT = timedelta(days=1)

#: Statements that delete the runs `ids` with their events and without a note of them: readers of
#: streams meet holes, so it is for runs that nobody reaches.
DELETE_WITH_EVENTS = (
    "DELETE FROM run_events WHERE run_id = ANY (%(ids)s)",
    "DELETE FROM runs WHERE id = ANY (%(ids)s)",
    "DELETE FROM forgotten_events WHERE run_id = ANY (%(ids)s)",
)

_FORGET_RUNS = statement(__package__, "forget_runs")
_SHORTEN_WAITS = statement(__package__, "shorten_waits")
_COLLECT_EVENTS = statement(__package__, "collect_events")
_PARTITION_NOTES = statement(__package__, "partition_notes")


def forget(connections: Connections, *, waits: bool = False) -> bool:
    """Delete what is older than the retention, in one pass; returns whether more is left.

    While another process deletes, it skips what is left of the pass, or `waits` for its turn.

    Raises:
        Unavailable: Postgres is out of reach.
    """
    is_left = False
    for forget_some in (
        _forget_runs,
        _shorten_waits,
        _collect_events,
        _drop_partition,
        _forget_answers,
        deliveries.forget_deleted_endpoints,
        deliveries.forget,
        _forget_workers,
    ):
        for _ in range(BITS_OF_A_PASS):
            with connections.transaction() as tx:
                if waits:
                    tx.sql.execute(select(func.pg_advisory_xact_lock(_LOCK_KEY)))
                elif not tx.sql.scalar(select(func.pg_try_advisory_xact_lock(_LOCK_KEY))):
                    return False
                there_is_more = forget_some(tx)
            if not there_is_more:
                break
        else:
            is_left = True
    return is_left


def _forget_runs(tx: Transaction) -> bool:
    """Delete runs beyond the retention; their messages stay in the thread."""
    days = tx.connections.settings.retention_days
    # Of what came before there were partitions the last run may be as young as the first partition.
    bounded = [one for one in partitions.read(tx.sql) if one.lower is not None]
    # Some runs end long after the others of their time: the rest waits for them, but not for ever.
    patience = timedelta(days=days) + partitions.width(days)
    parameters = {
        "retention_days": days,
        "lowers": plain_array(one.lower for one in bounded),
        "uppers": plain_array(one.upper for one in bounded),
        "collect_ats": plain_array(one.end + patience for one in bounded),
        "most_days": _most_days(days),
    }
    forgotten = tx.sql.exec_driver_sql(_FORGET_RUNS, parameters).all()
    spending.forget_runs(tx.sql, [(run.org_id, run.id) for run in forgotten])
    return len(forgotten) == RUNS_AT_ONCE


def _shorten_waits(tx: Transaction) -> bool:
    """Let no deleted run wait for its partition for longer than it may; returns whether more do.

    They were deleted under a longer retention, or by a process that waited for the partition alone.
    """
    most_days = _most_days(tx.connections.settings.retention_days)
    parameters = {"most_days": most_days, "most": WAITS_AT_ONCE}
    return tx.sql.exec_driver_sql(_SHORTEN_WAITS, parameters).rowcount == WAITS_AT_ONCE


def _most_days(retention_days: int) -> int:
    """Return for how many days events of a deleted run may wait for the drop of their partition.

    That is how long the first run of a partition waits, if it has the days that it has by now.
    """
    return 2 * partitions.width(retention_days).days


def _collect_events(tx: Transaction) -> bool:
    """Delete events of deleted runs; returns whether more are left.

    While Redis is out of reach those in Postgres go alone, and the runs stay noted. So they do
    where a command knows no Redis: the sweep of a process that has one finds the notes.
    """
    has_redis = tx.connections.has_redis
    parameters = {"readers_leave": READERS_LEAVE_SECONDS, "only_stored": not has_redis}
    looked_at = tx.sql.exec_driver_sql(_COLLECT_EVENTS, parameters).scalars().all()
    if looked_at and has_redis:
        run_id = forgotten_events.c.run_id
        are_gone = ~exists().where(run_events.c.run_id == run_id)
        gone = run_id.in_(looked_at) & are_gone
        if _unlink_streams(tx.connections, looked_at):
            tx.sql.execute(delete(forgotten_events).where(gone))
        else:
            # Later: others are looked at meanwhile.
            later = func.now() + REDIS_RETURNS - timedelta(seconds=READERS_LEAVE_SECONDS)
            tx.sql.execute(update(forgotten_events).where(gone).values(collect_at=later))
    return bool(looked_at)


def _unlink_streams(connections: Connections, run_ids: Sequence[UUID]) -> bool:
    """Delete what Redis has of the events of these runs; returns False if it is out of reach.

    The streams have an end of their own only if a process that has Redis ended the runs.
    """
    streams = [connections.keys.events(run_id) for run_id in run_ids]
    try:
        connections.ask_redis(lambda redis: redis.unlink(*streams))
    except RedisError as error:
        _streams.failed("tidying up failed: events in Redis: %s", error)
        return False
    _streams.worked()
    return True


def _drop_partition(tx: Transaction) -> bool:
    """Drop a partition of whose time no run is left; returns whether more is left to do.

    It waits for Redis, where the events of its runs go first.
    """
    now = tx.sql.scalar(select(func.now()))
    assert now is not None
    oldest = now - timedelta(days=tx.connections.settings.retention_days)
    for one in partitions.read(tx.sql):
        if one.end < oldest:
            bounds = {"lower": one.lower or UUID(int=0), "upper": one.upper}
            parameters = {**bounds, "readers_leave": READERS_LEAVE_SECONDS}
            noted = tx.sql.exec_driver_sql(_PARTITION_NOTES, parameters).scalars().all()
            if noted:
                if not tx.connections.has_redis or not _unlink_streams(tx.connections, noted):
                    continue
                released = is_among(forgotten_events.c.run_id, noted)
                tx.sql.execute(delete(forgotten_events).where(released))
                return True
            if partitions.drop(tx, one):
                return True
    return False


def _forget_answers(tx: Transaction) -> bool:
    return idempotency.delete_old(tx, limit=ANSWERS_AT_ONCE) == ANSWERS_AT_ONCE


def _forget_workers(tx: Transaction) -> bool:
    tx.sql.execute(delete(workers).where(workers.c.seen_at < func.now() - WORKERS_KEPT))
    return False
