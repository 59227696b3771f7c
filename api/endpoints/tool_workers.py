"""`/v1/tool-workers/{name}`: workers in the customer's network fetch tool calls and report results.

Only they connect. A poll waits for calls, a heartbeat for news of the calls in progress: it extends
their leases, and a connection that closes while it waits says that its worker is gone.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial, wraps
from typing import Any, cast
from uuid import UUID

from flask import Blueprint, Response, current_app, jsonify, request
from marshmallow import ValidationError, fields, validate, validates_schema

from arkloop.api.auth.bearer import authenticator, requires
from arkloop.api.endpoints.catalog_types import WorkerTool
from arkloop.api.endpoints.following import shared
from arkloop.api.endpoints.worker_types import EndedCall, HeldCalls, PolledCalls
from arkloop.api.http.current import actor, connections
from arkloop.api.http.described import described
from arkloop.api.http.fields import BoundedList, Id, Seconds, StrictBoolean, repetitions, whole
from arkloop.api.http.json_body import NoArguments, query_args, read_body
from arkloop.api.http.schema import Schema
from arkloop.api.streaming.arrival import counts_from_arrival, seconds_since_arrival
from arkloop.api.streaming.long_polls import (
    LongPoll,
    LongPollHub,
    outage_logged,
    respond_later,
)
from arkloop.shared.catalog import worker_tools
from arkloop.shared.catalog.worker_tools import Definition
from arkloop.shared.errors import (
    InvalidRequest,
    StaleCall,
    WorkerCallNotFound,
    WorkerToolNotFound,
    WorkerToolsUnknown,
)
from arkloop.shared.runs import worker_calls
from arkloop.shared.runs.worker_calls import Worker
from arkloop.shared.storage.connections import Connections
from arkloop.shared.times import rfc3339

bp = Blueprint("tool_workers", __name__)

MAX_WAIT_SECONDS = 30
MAX_LEASE_SECONDS = 300
MAX_CALLS = 64
MAX_HELD = 256
MAX_IMAGES = 8
#: A worker whose connection is closed has this long to send its next heartbeat.
GONE_SECONDS = 2.0
#: Seconds for which a hash stands for definitions. What two releases of a worker register
#: alternately while one replaces the other, the newer registers again.
TOOLS_SECONDS = 300.0
_MAX_KNOWN = 10_000

_WORKER_ID = validate.Regexp(
    r"\A[A-Za-z0-9_.:-]{1,64}\Z", error="must be 1 to 64 letters, digits and _ . : -"
)
_HASH = validate.Regexp(r"\A[0-9a-f]{64}\Z", error="must be 64 hexadecimal digits")


def _check_type(parameters: dict[str, Any]) -> None:
    """Check that the schema is of an object, as vendors require. Without a type it is one."""
    if parameters.get("type", "object") != "object":
        raise ValidationError('must be a JSON Schema with "type": "object"')


class _Tool(Schema):
    name = fields.String(
        required=True,
        validate=validate.Regexp(
            rf"\A{worker_tools.TOOL_NAME.pattern}\Z",
            error="must be 1 to 64 letters, digits, underscores and dashes",
        ),
    )
    description = fields.String(required=True, validate=validate.Length(1, 8_192))
    parameters = fields.Dict(required=True, validate=_check_type)
    idempotent = StrictBoolean(load_default=False)
    timeout_seconds = Seconds(1, worker_tools.MAX_TIMEOUT_SECONDS, load_default=60.0)


class _OfWorker(Schema):
    worker_id = fields.String(required=True, validate=_WORKER_ID)


class _Waiting(_OfWorker):
    wait_seconds = whole(0, MAX_WAIT_SECONDS)
    lease_seconds = whole(1, MAX_LEASE_SECONDS)


class PollForCalls(_Waiting):
    """Either `tools`, or the hash that the response to them had."""

    max_calls = whole(1, MAX_CALLS)
    tools = BoundedList(fields.Nested(_Tool), least=1, most=worker_tools.MAX_TOOLS)
    tools_hash = fields.String(validate=_HASH)

    @validates_schema
    def _check_tools(self, body: dict[str, Any], **_: Any) -> None:
        if ("tools" in body) == ("tools_hash" in body):
            raise ValidationError("requires either `tools` or `tools_hash`", "tools")
        names = [tool["name"] for tool in body.get("tools", ())]
        if repeated := repetitions(names):
            why = {"name": ["duplicate name"]}
            raise ValidationError({"tools": dict.fromkeys(repeated, why)})


class _Held(Schema):
    call_id = Id(required=True)
    fence = fields.Integer(required=True, strict=True, validate=validate.Range(1, 2**63 - 1))


class HoldCalls(_Waiting):
    calls = BoundedList(fields.Nested(_Held), required=True, least=1, most=MAX_HELD)


class CompleteCall(_Held, _OfWorker):
    output = fields.String(required=True)
    images = BoundedList(fields.String(), most=MAX_IMAGES, load_default=list)


class FailCall(_Held, _OfWorker):
    error = fields.String(required=True, validate=validate.Length(1, 65_536))


# Made once: making a schema copies its fields.
_POLL, _HEARTBEAT, _COMPLETE, _FAIL = PollForCalls(), HoldCalls(), CompleteCall(), FailCall()


class KnownTools:
    """The tools that workers have registered with this process, by the hash of all of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[UUID, str, str], tuple[float, frozenset[str]]] = {}

    def names(self, org_id: UUID, pool: str, hash_: str) -> frozenset[str]:
        """Return the names. Raises: WorkerToolsUnknown: they are to be registered again."""
        until, names = self._known.get((org_id, pool, hash_), (0.0, frozenset[str]()))
        if until < time.monotonic():
            raise WorkerToolsUnknown()
        return names

    def add(self, org_id: UUID, pool: str, hash_: str, names: frozenset[str]) -> frozenset[str]:
        """Keep the names; returns the one set that all polls with these tools share."""
        with self._lock:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            known = self._known.get((org_id, pool, hash_))
            kept = known[1] if known is not None else names
            self._known[org_id, pool, hash_] = (time.monotonic() + TOOLS_SECONDS, kept)
            return kept


def waiting(connections: Connections) -> list[tuple[str, str]]:
    """Return topic and detail of the calls that wait for a worker, for the hub of long polls."""
    with connections.reading() as sql:
        return worker_calls.waiting(sql)


def _of_pool(view: Callable[[Worker, dict[str, Any]], Response], schema: Schema) -> Any:
    """Call the view with the worker and the body of its request."""

    @wraps(view)
    @counts_from_arrival
    @requires("tools.work", is_heartbeat=view is heartbeat)
    def called(name: str) -> Response:
        if not worker_tools.POOL_NAME.fullmatch(name):
            raise InvalidRequest(name=[f"must match {worker_tools.POOL_NAME.pattern}"])
        body = read_body(schema)
        return view(Worker(actor().org_id, name, body["worker_id"]), body)

    return called


@described(body=PollForCalls, returns=PolledCalls, raises=[WorkerToolsUnknown])
def poll(worker: Worker, body: dict[str, Any]) -> Response:
    """Wait for calls, for at most `wait_seconds`; each comes with a lease and a fence."""
    hash_, tools = _tools(worker, body)
    take = partial(
        _take,
        connections(),
        worker,
        tools,
        hash_,
        _or(body.get("max_calls"), 1),
        _or(body.get("lease_seconds"), 15),
    )
    topic = worker_calls.calls_topic(worker.org_id, worker.pool)
    waiting = LongPoll(topic, tools, request.environ.get("gunicorn.socket"))
    nothing = partial(_no_calls, connections(), worker, hash_)
    return _respond(waiting, _or(body.get("wait_seconds"), MAX_WAIT_SECONDS), take, nothing)


@described(body=HoldCalls, returns=HeldCalls)
def heartbeat(worker: Worker, body: dict[str, Any]) -> Response:
    """Extend the leases of calls; with `wait_seconds`, wait until one of them is to be stopped."""
    calls = {call["call_id"]: call["fence"] for call in body["calls"]}
    lease_seconds = _or(body.get("lease_seconds"), 15)
    topic = worker_calls.worker_topic(worker.org_id, worker.pool)
    connection = request.environ.get("gunicorn.socket")
    waiting = LongPoll(topic, frozenset({worker.id}), connection, looks_itself=True)
    if waiting.client_has_left():
        # Read late, it says nothing about now: a newer heartbeat may wait at another process.
        return Response(_json(cancelled=[], lost=[]), mimetype="application/json")
    with connections().statement() as tx:
        held = worker_calls.extend(tx, worker, calls, lease_seconds=lease_seconds)
    seconds = min(_or(body.get("wait_seconds"), 0), lease_seconds / 2)
    news = partial(_news, connections(), worker, calls)
    nothing = partial(_unheard, connections(), waiting, held)
    return _respond(waiting, seconds, news, nothing)


@described(body=CompleteCall, returns=EndedCall, raises=[StaleCall, WorkerCallNotFound])
def complete(worker: Worker, body: dict[str, Any]) -> Response:
    """Store the result of a call."""
    return _end(worker, body, output=body["output"], is_error=False, images=body["images"])


@described(body=FailCall, returns=EndedCall, raises=[StaleCall, WorkerCallNotFound])
def fail(worker: Worker, body: dict[str, Any]) -> Response:
    """Store that a call has failed; the model reads `error`."""
    return _end(worker, body, output=body["error"], is_error=True)


for _view, _schema in (
    (poll, _POLL),
    (heartbeat, _HEARTBEAT),
    (complete, _COMPLETE),
    (fail, _FAIL),
):
    bp.post(f"/v1/tool-workers/<name>:{_view.__name__}")(_of_pool(_view, _schema))


@bp.get("/v1/tool-workers/<name>/tools")
@requires("data.runs.read")
@described(returns=list[WorkerTool])
def list_tools(name: str) -> Response:
    """List the tools that workers of the pool have registered, by name."""
    query_args(NoArguments())
    with connections().reading() as sql:
        rows = worker_tools.of_pools(sql, actor().org_id, [name])
    return jsonify([_shown(row) for row in rows])


@bp.delete("/v1/tool-workers/<name>/tools/<tool>")
@requires("admin")
@described(status=204, raises=[WorkerToolNotFound])
def delete_tool(name: str, tool: str) -> Response:
    """Forget a tool that no worker registers any more. 204."""
    query_args(NoArguments())
    with connections().transaction() as tx:
        worker_tools.remove(tx, actor().org_id, name, tool)
    return Response(status=204)


def _tools(worker: Worker, body: dict[str, Any]) -> tuple[str, frozenset[str]]:
    """Return hash and names of the worker's tools, which are stored if they are new."""
    known = cast(KnownTools, current_app.extensions["arkloop.worker_tools"])
    if "tools_hash" in body:
        return body["tools_hash"], known.names(worker.org_id, worker.pool, body["tools_hash"])
    tools = [Definition(**tool) for tool in body["tools"]]
    with connections().transaction() as tx:
        worker_tools.register(tx, worker.org_id, worker.pool, tools)
    hash_, names = worker_tools.hash_of(tools), frozenset(tool.name for tool in tools)
    return hash_, known.add(worker.org_id, worker.pool, hash_, names)


def _respond(
    poll: LongPoll,
    seconds: float,
    take: Callable[[], bytes | None],
    otherwise: Callable[[], bytes],
) -> Response:
    """Respond with what `take` returns, now or within these seconds after the request arrived.

    A client that has left before takes nothing, and does not count as a worker that is gone. A
    client whose key was revoked or lacks the permission gets no work.
    """
    body = otherwise() if poll.client_has_left() else take()
    seconds -= seconds_since_arrival()
    if body is None and seconds <= 0:
        body = otherwise()
    if body is not None:
        return Response(body, mimetype="application/json")
    hub = cast(LongPollHub, current_app.extensions["arkloop.polls"])
    may_work = partial(authenticator().still_allows, shared(actor()), "tools.work")

    def take_if_allowed() -> bytes | None:
        if not may_work():
            hub.pass_on(poll)
            return otherwise()
        return take()

    later = respond_later(hub, poll, request.environ, seconds, take_if_allowed, otherwise)
    return Response(later, mimetype="application/json", direct_passthrough=True)


def _take(
    connections: Connections,
    worker: Worker,
    tools: frozenset[str],
    hash_: str,
    limit: int,
    lease_seconds: float,
) -> bytes | None:
    """Take calls for the worker; None if there are none."""
    with connections.statement() as tx:
        rows = worker_calls.take(tx, worker, tools, limit=limit, lease_seconds=lease_seconds)
    calls = [
        {
            "call_id": str(row.id),
            "fence": row.fence,
            "tool": row.tool,
            "lease_seconds": lease_seconds,
            "timeout_seconds": row.timeout_seconds,
            **json.loads(row.request),
        }
        for row in rows
    ]
    return _json(tools_hash=hash_, calls=calls, cancelled=rows[0].cancelled) if calls else None


def _no_calls(connections: Connections, worker: Worker, hash_: str) -> bytes:
    """Return that there are no calls; heartbeats report the cancelled ones, too."""
    cancelled: list[str] = []
    with outage_logged(), connections.reading() as sql:
        cancelled = worker_calls.cancelled(sql, worker)
    return _json(tools_hash=hash_, calls=[], cancelled=cancelled)


def _news(connections: Connections, worker: Worker, calls: Mapping[UUID, int]) -> bytes | None:
    """Return which calls are to be stopped, and which the worker has lost; None if none."""
    with connections.reading() as sql:
        cancelled = worker_calls.cancelled(sql, worker)
        lost = calls.keys() - worker_calls.held(sql, worker, calls)
    concerned = {str(call_id) for call_id in calls}
    cancelled = [call_id for call_id in cancelled if call_id in concerned]
    if not cancelled and not lost:
        return None
    return _json(cancelled=cancelled, lost=sorted(map(str, lost)))


def _unheard(connections: Connections, poll: LongPoll, held: Mapping[UUID, datetime]) -> bytes:
    """Return that there is no news; if the worker is gone, take the calls of the heartbeat."""
    if poll.has_left and held:
        time.sleep(GONE_SECONDS)
        with outage_logged(), connections.transaction() as tx:
            worker_calls.lose(tx, held)
    return _json(cancelled=[], lost=[])


def _end(worker: Worker, body: dict[str, Any], **result: Any) -> Response:
    with connections().statement() as tx:
        worker_calls.end(tx, worker, body["call_id"], body["fence"], **result)
    with connections().reading() as sql:
        cancelled = worker_calls.cancelled(sql, worker)
    return jsonify(ok=True, cancelled=cancelled)


def _json(**values: Any) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _shown(row: Any) -> dict[str, Any]:
    names = ("name", "description", "parameters", "idempotent", "timeout_seconds")
    return {
        **{name: getattr(row, name) for name in names},
        "updated_at": rfc3339(row.updated_at),
    }
