"""The queue of tool calls that workers of the customer make.

queued    not fetched yet, or the worker that had it is lost and the call may be repeated
leased    a worker has it, until its lease expires
done      a worker has reported its result
unknown   its worker is lost; it may or may not have taken effect
withdrawn not fetched in time, and not available any more

The worker process of the run waits for one of the last three; where it is lost, the run's next
attempt waits for the same row. So a call is queued once, whatever happens to the service.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import Connection, Row, and_, bindparam, case, exists, func, or_, select, update

from arkloop.shared.errors import LeaseLost, StaleCall, WorkerCallNotFound
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.signals import Wake
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.runs import runs, worker_calls

#: How often a call is handed out: it may be what kills its workers.
MAX_HANDOUTS = 3

_ADD = statement(__package__, "add_worker_call")
_TAKE = statement(__package__, "take_worker_calls")
_LOSE = statement(__package__, "lose_worker_calls")

_SECONDS_LEFT = func.extract("epoch", worker_calls.c.deadline - func.now())
_LEASE_LEFT = func.extract("epoch", worker_calls.c.lease_expires_at - func.now())
#: Built once: that costs more than executing it.
_FIND: Any = select(
    *(worker_calls.c[name] for name in ("state", "fence", "output", "is_error", "images")),
    _SECONDS_LEFT.label("seconds_left"),
).where(worker_calls.c.id == bindparam("call_id"))


@dataclass(frozen=True, slots=True)
class CallEnded:
    """A call that has ended, for the worker process whose run waits for it."""

    kind: ClassVar[str] = "call_ended"
    subject: UUID  # the run
    owner: UUID

    @staticmethod
    def send(connections: Connections, group: "Sequence[CallEnded]") -> None:
        """Publish on the channels of the worker processes, in one round trip."""

        def publish(redis: Any) -> None:
            pipeline = redis.pipeline(transaction=False)
            for one in group:
                channel = connections.keys.worker_signals(one.owner)
                pipeline.publish(channel, f"{one.kind} {one.subject}")
            pipeline.execute()

        connections.ask_redis(publish)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call to be queued. `request` is what its worker reads: arguments, and on whose behalf."""

    run_id: UUID
    tool_call_id: str
    org_id: UUID
    pool: str
    tool: str
    request: Mapping[str, Any]
    idempotent: bool
    timeout_seconds: float


def calls_topic(org_id: UUID, pool: str) -> str:
    """Return what polls of the pool wait for; the detail is the tool's name."""
    return f"tool-workers:{org_id}:{pool}"


def worker_topic(org_id: UUID, pool: str) -> str:
    """Return what heartbeats of the pool wait for; the detail is the worker's id."""
    return f"tool-workers-cancel:{org_id}:{pool}"


# ---- for the run that waits ----------------------------------------------------------


def add(tx: Transaction, call: Call, *, fence: int) -> UUID:
    """Queue the call, unless an earlier attempt of the run has; returns its id.

    Raises:
        LeaseLost: `fence` is not that of the run any more.
    """
    row = tx.sql.exec_driver_sql(
        _ADD,
        {
            "id": new_id(),
            "run_id": call.run_id,
            "tool_call_id": call.tool_call_id,
            "pool": call.pool,
            "tool": call.tool,
            "request": json.dumps(call.request, separators=(",", ":")),
            "idempotent": call.idempotent,
            "timeout_seconds": call.timeout_seconds,
            "fence": fence,
        },
    ).one_or_none()
    if row is None:
        raise LeaseLost()
    if row.state == "queued":
        tx.after_commit.append(Wake(calls_topic(call.org_id, call.pool), call.tool))
    return UUID(str(row.id))


def find(sql: Connection, call_id: UUID) -> Row[Any]:
    """Return the call's state and result; `seconds_left` until its deadline."""
    row: Row[Any] = sql.execute(_FIND, {"call_id": call_id}).one()
    return row


def withdraw(tx: Transaction, call_id: UUID, *, run_id: UUID, fence: int) -> bool:
    """Withdraw a call that was not fetched yet; ask its worker to stop if it was.

    Does nothing if `fence` is not that of the run any more: a later attempt waits for the call.
    Returns whether the call is withdrawn now and was never fetched.
    """
    is_queued = worker_calls.c.state == "queued"
    row = tx.sql.execute(
        update(worker_calls)
        .where(
            worker_calls.c.id == call_id,
            worker_calls.c.state.in_(("queued", "leased")),
            exists().where(runs.c.id == run_id, runs.c.fence == fence),
        )
        .values(
            cancel_requested_at=func.coalesce(worker_calls.c.cancel_requested_at, func.now()),
            state=case((is_queued, "withdrawn"), else_=worker_calls.c.state),
            ended_at=case((is_queued, func.now()), else_=None),
        )
        .returning(*worker_calls.c)
    ).one_or_none()
    if row is not None and row.state == "leased":
        topic = worker_topic(row.org_id, row.pool)
        tx.after_commit.append(Wake(topic, row.worker_id, everyone=True))
    return row is not None and row.state == "withdrawn" and not row.fence


def expire(tx: Transaction, call_ids: Collection[UUID]) -> None:
    """Take those of the calls from their workers whose leases have expired.

    After an outage of Postgres, in which nobody could be heard, they have a lease of the service to
    come back.
    """
    _lose(tx, call_ids, heard_at=None)


def states(sql: Connection, call_ids: Collection[UUID]) -> list[Row[Any]]:
    """Return `id`, `state` and `lease_left`, in seconds, of these calls."""
    return list(
        sql.execute(
            select(worker_calls.c.id, worker_calls.c.state, _LEASE_LEFT.label("lease_left")).where(
                worker_calls.c.id.in_(call_ids)
            )
        )
    )


# ---- for workers of the customer -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker of a pool, as it names itself."""

    org_id: UUID
    pool: str
    id: str


def take(
    tx: Transaction, worker: Worker, tools: Collection[str], *, limit: int, lease_seconds: float
) -> list[Row[Any]]:
    """Hand out at most `limit` calls of these tools, the oldest first."""
    taken = tx.sql.exec_driver_sql(
        _TAKE,
        {
            "org_id": worker.org_id,
            "pool": worker.pool,
            "worker_id": worker.id,
            "tools": list(tools),
            "limit": limit,
            "lease_seconds": lease_seconds,
        },
    )
    return sorted(taken, key=lambda row: row.id)


def waiting(sql: Connection) -> list[tuple[str, str]]:
    """List topic and detail of everything that waits for a worker."""
    query = select(worker_calls.c.org_id, worker_calls.c.pool, worker_calls.c.tool).where(
        worker_calls.c.state == "queued"
    )
    rows = sql.execute(query.distinct().limit(10_000))
    return [(calls_topic(row.org_id, row.pool), row.tool) for row in rows]


def extend(
    tx: Transaction, worker: Worker, held: Mapping[UUID, int], *, lease_seconds: float
) -> dict[UUID, datetime]:
    """Extend the leases of calls that the worker still holds, by id and fence.

    Returns these, each with the time of this heartbeat.
    """
    lease = func.make_interval(0, 0, 0, 0, 0, 0, lease_seconds)
    rows = tx.sql.execute(
        update(worker_calls)
        .where(_is_held(worker, held), worker_calls.c.cancel_requested_at.is_(None))
        .values(heard_at=func.now(), lease_expires_at=func.now() + lease)
        .returning(worker_calls.c.id, worker_calls.c.heard_at)
    )
    return {row.id: row.heard_at for row in rows}


def cancelled(sql: Connection, worker: Worker) -> list[str]:
    """List the calls that the worker holds and should stop."""
    query = (
        select(worker_calls.c.id)
        .join(runs, runs.c.id == worker_calls.c.run_id)
        .where(
            worker_calls.c.org_id == worker.org_id,
            worker_calls.c.pool == worker.pool,
            worker_calls.c.worker_id == worker.id,
            worker_calls.c.state == "leased",
            worker_calls.c.lease_expires_at > func.now(),
            or_(
                worker_calls.c.cancel_requested_at.is_not(None),
                runs.c.cancel_requested_at.is_not(None),
                runs.c.ended_at.is_not(None),
            ),
        )
    )
    return [str(call_id) for call_id in sql.scalars(query)]


def held(sql: Connection, worker: Worker, calls: Mapping[UUID, int]) -> set[UUID]:
    """Return those of the calls that the worker still holds.

    No heartbeat extends the lease of a cancelled call, and `cancelled` does not list it after that.
    """
    is_leased = or_(
        worker_calls.c.cancel_requested_at.is_(None), worker_calls.c.lease_expires_at > func.now()
    )
    return set(sql.scalars(select(worker_calls.c.id).where(_is_held(worker, calls), is_leased)))


def lose(tx: Transaction, held: Mapping[UUID, datetime]) -> None:
    """Take calls, as `extend` has returned them, that no heartbeat of their worker has named since.

    The worker may be alive, and have closed the connection because one of its calls has ended.
    """
    [heard_at] = set(held.values())  # of one heartbeat
    _lose(tx, held, heard_at=heard_at)


def end(
    tx: Transaction,
    worker: Worker,
    call_id: UUID,
    fence: int,
    *,
    output: str,
    is_error: bool,
    images: Sequence[str] = (),
) -> None:
    """Store the result of a call; the same again has no effect.

    Raises:
        WorkerCallNotFound
        StaleCall: another worker has it, its outcome was given up, or it has another result.
    """
    row = tx.sql.execute(
        update(worker_calls)
        .where(_is_held(worker, {call_id: fence}))
        .values(
            state="done",
            output=output,
            is_error=is_error,
            images=list(images) or None,
            ended_at=func.now(),
        )
        .returning(worker_calls.c.run_id, worker_calls.c.owner)
    ).one_or_none()
    if row is not None:
        tx.after_commit.append(CallEnded(row.run_id, row.owner))
        return
    names = ("fence", "state", "output", "is_error", "images")
    query = select(*(worker_calls.c[name] for name in names)).where(
        worker_calls.c.id == call_id, _is_of(worker)
    )
    there = tx.sql.execute(query).one_or_none()
    if there is None:
        raise WorkerCallNotFound()
    if there != (fence, "done", output, is_error, list(images) or None):
        raise StaleCall(fence=there.fence, state=there.state)


def _lose(tx: Transaction, call_ids: Collection[UUID], *, heard_at: datetime | None) -> None:
    """Take calls, and let other heartbeats of their workers report that."""
    settings = tx.connections.settings
    parameters = {
        "ids": list(call_ids),
        "heard_at": heard_at,
        "max_handouts": MAX_HANDOUTS,
        "lease": settings.lease_seconds,
        "missed": settings.heartbeat_seconds * 1.25,  # as for `find_lost.sql`
    }
    rows = tx.sql.exec_driver_sql(_LOSE, parameters).all()
    workers = {(worker_topic(row.org_id, row.pool), row.worker_id) for row in rows}
    tx.after_commit += [Wake(topic, id_, everyone=True) for topic, id_ in workers]
    for row in rows:
        if row.state == "queued":
            tx.after_commit.append(Wake(calls_topic(row.org_id, row.pool), row.tool))
        else:
            tx.after_commit.append(CallEnded(row.run_id, row.owner))


def _is_of(worker: Worker) -> Any:
    return and_(worker_calls.c.org_id == worker.org_id, worker_calls.c.pool == worker.pool)


def _is_held(worker: Worker, calls: Mapping[UUID, int]) -> Any:
    pairs = [
        and_(worker_calls.c.id == call_id, worker_calls.c.fence == fence)
        for call_id, fence in calls.items()
    ]
    return and_(_is_of(worker), worker_calls.c.state == "leased", or_(*pairs))
