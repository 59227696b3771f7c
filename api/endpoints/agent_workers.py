"""`/v1/agent-workers/{name}`: workers in the customer's hands execute runs of their agents.

Only they connect. A poll waits for runs, a heartbeat for news of the runs in progress: it renews
the worker's lease, and a connection that closes while it waits says that the worker is gone.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial, wraps
from typing import Any, cast
from uuid import UUID

from flask import Blueprint, Response, current_app, jsonify, request

from arkloop.api.auth.bearer import authenticator, requires
from arkloop.api.endpoints import agent_worker_bodies as bodies
from arkloop.api.endpoints.files import content_of
from arkloop.api.endpoints.worker_types import HeldRuns, PolledRuns, ReservedRun, WrittenRun
from arkloop.api.http.current import actor, catalog, connections
from arkloop.api.http.described import described
from arkloop.api.http.json_body import BodyLimits, query_args, read_body
from arkloop.api.http.schema import Schema
from arkloop.api.streaming.arrival import counts_from_arrival, seconds_since_arrival
from arkloop.api.streaming.long_polls import (
    LongPoll,
    LongPollHub,
    outage_logged,
    respond_later,
)
from arkloop.shared.catalog.catalog import Catalog
from arkloop.shared.catalog.personas import AGENT_NAME
from arkloop.shared.errors import (
    InvalidRequest,
    OutdatedFence,
    RunNotFound,
    SequenceConflict,
    StorageUnavailable,
    Unavailable,
)
from arkloop.shared.events.types import RunError
from arkloop.shared.outage_log import reason_of
from arkloop.shared.runs import (
    agent_claims,
    agent_files,
    agent_queue,
    agent_workers,
    agent_writes,
    recovery,
)
from arkloop.shared.runs.agent_endings import Complete
from arkloop.shared.runs.agent_workers import AgentWorker
from arkloop.shared.runs.agent_writes import (
    Ask,
    AskApproval,
    Delegate,
    Fail,
    Hold,
    Release,
    Then,
    Write,
)
from arkloop.shared.runs.held_runs import Written
from arkloop.shared.runs.states import status_of
from arkloop.shared.storage.connections import Connections

bp = Blueprint("agent_workers", __name__)
log = logging.getLogger(__name__)

#: An answer of 1 MiB that is an object is there as `output`, and as `content`, in which each quote
#: takes two bytes. A checkpoint may have 1 MiB, of which each value takes two bytes at least.
#: Calls, checkpoints and the output may have long integers, as those of an agent in the service.
LIMITS = BodyLimits(most_bytes=4 * 1024 * 1024, most_values=600_000, takes_long_integers=True)
#: Errors of every write of a worker.
WRITING = (RunNotFound, OutdatedFence, SequenceConflict)
#: A worker whose connection is closed has this long to send its next heartbeat.
GONE_SECONDS = 1.5


def look(connections: Connections) -> list[tuple[str, str]]:
    """Return topic and run of queued runs of agents, for the hub of long polls."""
    with connections.reading() as sql:
        return list(agent_queue.look(sql))


def _of_agent(view: Callable[[str, dict[str, Any]], Response], schema: Schema) -> Any:
    """Call the view with the agent's name and the body of its request."""

    @wraps(view)
    @counts_from_arrival
    @requires("agents.work", is_heartbeat=view is heartbeat)
    def called(name: str) -> Response:
        _check(name)
        return view(name, read_body(schema, limits=LIMITS))

    return called


def _check(name: str) -> None:
    if not AGENT_NAME.fullmatch(name):
        raise InvalidRequest(name=[f"must match {AGENT_NAME.pattern}"])


@described(body=bodies.PollForRuns, returns=PolledRuns)
def poll(name: str, body: dict[str, Any]) -> Response:
    """Wait for runs, for at most `wait_seconds`; each comes with all that its agent needs."""
    worker = AgentWorker(body["worker_id"], actor().org_id, name)
    limit = 1 if body.get("max_runs") is None else body["max_runs"]
    # Of the time when the request arrived: what the worker has got since, by another poll, is not
    # among them.
    held = frozenset(body["held"])
    take = partial(_take, connections(), worker, catalog(), limit, held)
    claim = partial(_claim, connections(), worker, catalog(), limit)
    topic = agent_queue.topic(worker.org_id, name)
    # The arrival has looked for runs that the worker has; a poll for these alone is never woken.
    details = None if limit else frozenset[str]()
    waiting = LongPoll(topic, details, request.environ.get("gunicorn.socket"))
    nothing = partial(_polled, connections(), [])
    seconds = body.get("wait_seconds")
    is_silent = partial(_is_silent, connections(), worker) if body["held"] else None
    return _respond(waiting, seconds, bodies.MAX_WAIT_SECONDS, take, nothing, claim, is_silent)


@described(body=bodies.HoldRuns, returns=HeldRuns)
def heartbeat(name: str, body: dict[str, Any]) -> Response:
    """Renew the worker's lease; with `wait_seconds`, wait until a run is cancelled or lost."""
    worker = AgentWorker(body["worker_id"], actor().org_id, name)
    known = {run["run_id"]: run for run in body["runs"]}
    connection = request.environ.get("gunicorn.socket")
    topic = agent_workers.news_topic(worker.id)
    waiting = LongPoll(topic, None, connection, looks_itself=True)
    if waiting.client_has_left():
        # Read late, it says nothing about now: a newer heartbeat may wait at another process.
        return Response(_beaten(connections(), {}), mimetype="application/json")
    with connections().statement() as tx:
        seen_at = agent_workers.renew(tx, worker)
    most = connections().settings.lease_seconds / 3
    seconds = min(body.get("wait_seconds") or 0, most)
    news = partial(_news, connections(), worker, known)
    nothing = partial(_unheard, connections(), waiting, worker, known, seen_at)
    return _respond(waiting, seconds, 0, news, nothing, news)


@described(body=bodies.AppendEvents, returns=WrittenRun, raises=WRITING)
def append(name: str, body: dict[str, Any]) -> Response:
    """Append events, store a checkpoint, or both in one."""
    return _write(name, body)


@described(body=bodies.StoreCheckpoint, returns=WrittenRun, raises=WRITING)
def checkpoint(name: str, body: dict[str, Any]) -> Response:
    """Store a checkpoint, with which another worker continues if this one is lost."""
    return _write(name, {"events": (), **body})


@described(body=bodies.AskPerson, returns=WrittenRun, raises=WRITING)
def ask(name: str, body: dict[str, Any]) -> Response:
    """Let the run wait for a person's answer; it is polled again when there is one."""
    question, options = body["question"], body.get("options")
    if body["approval_of"] is not None:
        asked: Then = AskApproval(tool_call_id=body["approval_of"], prompt=question)
    else:
        asked = Ask(key=body["key"], prompt=question, options=options or None)
    return _write(name, body, asked)


@described(body=bodies.DelegateTasks, returns=WrittenRun, raises=WRITING)
def delegate(name: str, body: dict[str, Any]) -> Response:
    """Let the run wait for sub-runs; it is polled again when all their results are there."""
    return _write(name, body, Delegate(tasks=body["tasks"]))


@described(body=bodies.ReserveMoney, returns=ReservedRun, raises=(RunNotFound, OutdatedFence))
def reserve(name: str, body: dict[str, Any]) -> Response:
    """Reserve what the next model call of the agent may cost at most."""
    hold = Hold(**body)
    with connections().transaction() as tx:
        written, is_reserved = agent_writes.reserve(tx, actor().org_id, name, hold, catalog())
    return jsonify(**_shown(hold.run_id, written), is_reserved=is_reserved)


@described(body=bodies.CompleteRun, returns=WrittenRun, raises=WRITING)
def complete(name: str, body: dict[str, Any]) -> Response:
    """Complete the run with the final answer."""
    return _write(name, body, Complete(content=body["content"], output=body["output"]))


@described(body=bodies.FailRun, returns=WrittenRun, raises=WRITING)
def fail(name: str, body: dict[str, Any]) -> Response:
    """Let the run fail."""
    error = RunError(body["code"], body["message"], body["retryable"])
    return _write(name, body, Fail(error=error))


@described(body=bodies.ReleaseRun, returns=WrittenRun, raises=WRITING)
def release(name: str, body: dict[str, Any]) -> Response:
    """Give the run back to the queue: this worker stops."""
    return _write(name, body, Release())


for _view, _schema in (
    (poll, bodies.PollForRuns()),
    (heartbeat, bodies.HoldRuns()),
    (append, bodies.AppendEvents()),
    (checkpoint, bodies.StoreCheckpoint()),
    (ask, bodies.AskPerson()),
    (delegate, bodies.DelegateTasks()),
    (reserve, bodies.ReserveMoney()),
    (complete, bodies.CompleteRun()),
    (fail, bodies.FailRun()),
    (release, bodies.ReleaseRun()),
):
    bp.post(f"/v1/agent-workers/<name>:{_view.__name__}")(_of_agent(_view, _schema))


@bp.get("/v1/agent-workers/<name>/runs/<id:run_id>/files/<id:file_id>")
@requires("agents.work")
@described(
    query=bodies.ReadFile, returns={"*/*": bytes}, raises=[OutdatedFence, StorageUnavailable]
)
def get_run_file(name: str, run_id: UUID, file_id: UUID) -> Response:
    """Send the bytes of a file that the messages of a run name to the worker that executes it."""
    _check(name)
    fence = query_args(bodies.ReadFile())["fence"]
    with connections().reading() as sql:
        file = agent_files.find(sql, actor().org_id, name, run_id, fence, file_id)
    return content_of(file)


def _write(name: str, body: Mapping[str, Any], then: Then = None) -> Response:
    change = Write(
        run_id=body["run_id"],
        fence=body["fence"],
        seq=body.get("seq"),
        events=body["events"],
        checkpoint=body.get("checkpoint"),
        begun=body.get("begun", ()),
        unbegun=body.get("unbegun"),
    )
    most = connections().settings.run_output_mib * 1024 * 1024
    with connections().transaction() as tx:
        written = agent_writes.write(
            tx, actor().org_id, name, change, catalog(), then, max_output_bytes=most
        )
    return jsonify(_shown(change.run_id, written))


def _shown(run_id: UUID, written: Written) -> dict[str, Any]:
    return {
        "run_id": str(run_id),
        "status": status_of(written.state),
        "cancel_requested": written.cancel_requested,
        "next_seq": written.next_seq,
    }


def _respond(
    poll: LongPoll,
    seconds: float | None,
    default_seconds: float,
    take: Callable[[], bytes | None],
    otherwise: Callable[[], bytes],
    take_later: Callable[[], bytes | None],
    is_silent: Callable[[], bool] | None = None,
) -> Response:
    """Respond with what `take` returns now, or `take_later` within these seconds after the request
    arrived.

    A client that has left before takes nothing, and does not count as a worker that is gone. A
    worker that `is_silent` when its poll is woken gets nothing: it may be frozen, and its
    connections open. One that is alive asks again at once. A client whose key was revoked or lacks
    the permission gets no work.
    """
    seconds = default_seconds if seconds is None else seconds
    body = otherwise() if poll.client_has_left() else take()
    seconds -= seconds_since_arrival()
    if body is None and seconds <= 0:
        body = otherwise()
    if body is not None:
        return Response(body, mimetype="application/json")
    hub = cast(LongPollHub, current_app.extensions["arkloop.polls"])
    may_work = partial(authenticator().still_allows, actor(), "agents.work")

    def take_if_heard() -> bytes | None:
        if (is_silent is not None and is_silent()) or not may_work():
            hub.pass_on(poll)
            return otherwise()
        return take_later()

    later = respond_later(hub, poll, request.environ, seconds, take_if_heard, otherwise)
    return Response(later, mimetype="application/json", direct_passthrough=True)


def _take(
    connections: Connections,
    worker: AgentWorker,
    catalog: Catalog,
    limit: int,
    held: frozenset[UUID] | None,
) -> bytes | None:
    """Take runs for the worker; None if there are none. Without `held`, none that it has."""
    taken = agent_claims.take(connections, worker, catalog, held=held, limit=limit)
    return _polled(connections, taken) if taken else None


def _claim(
    connections: Connections, worker: AgentWorker, catalog: Catalog, limit: int
) -> bytes | None:
    """Claim queued runs for a poll that has waited; None if there are none.

    If Postgres fails, the poll responds without runs: some may be claimed already, and only the
    arrival of the worker's next poll returns them.
    """
    try:
        return _take(connections, worker, catalog, limit, None)
    except Unavailable as error:
        log.warning("agent worker %s: a poll ends early: %s", worker.id, reason_of(error))
        return _polled(connections, [])


def _is_silent(connections: Connections, worker: AgentWorker) -> bool:
    with connections.reading() as sql:
        return agent_workers.is_silent(sql, worker, connections.settings.lease_seconds)


def _polled(connections: Connections, runs: list[dict[str, Any]]) -> bytes:
    return _json(lease_seconds=connections.settings.lease_seconds, runs=runs)


def _news(
    connections: Connections, worker: AgentWorker, known: Mapping[UUID, Mapping[str, Any]]
) -> bytes | None:
    """Return the worker's runs if one is lost or cancelled that it takes for its own."""
    fences = {run_id: run["fence"] for run_id, run in known.items()}
    with connections.reading() as sql:
        found = agent_workers.statuses(sql, worker, fences)
    is_news = any(
        not one["is_held"] or one["cancel_requested"] > known[run_id]["cancel_requested"]
        for run_id, one in found.items()
    )
    return _beaten(connections, found) if is_news else None


def _unheard(
    connections: Connections,
    poll: LongPoll,
    worker: AgentWorker,
    known: Mapping[UUID, Mapping[str, Any]],
    seen_at: datetime,
) -> bytes:
    """Return that there is no news; if the worker is gone, take the runs of the heartbeat."""
    if poll.has_left and known:
        time.sleep(GONE_SECONDS)
        with outage_logged():
            recovery.recover_from(connections, worker.id, seen_at, known.keys())
    return _beaten(
        connections,
        {
            run_id: {"is_held": True, "cancel_requested": run["cancel_requested"]}
            for run_id, run in known.items()
        },
    )


def _beaten(connections: Connections, found: Mapping[UUID, Mapping[str, Any]]) -> bytes:
    shown = [{"run_id": str(run_id), **one} for run_id, one in found.items()]
    return _json(lease_seconds=connections.settings.lease_seconds, runs=shown)


def _json(**values: Any) -> bytes:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
