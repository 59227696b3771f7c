"""`/v1/agui`: runs by AG-UI, for `HttpAgent` and the front ends that stand on it."""

import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from ag_ui.core import (
    BaseEvent,
    MessagesSnapshotEvent,
    RunErrorEvent,
    RunFinishedCancelledOutcome,
    RunFinishedEvent,
    RunFinishedSuccessOutcome,
    RunStartedEvent,
)
from flask import Blueprint, Response, jsonify, request
from marshmallow import fields, validate
from sqlalchemy import Row

from arkloop.api.auth.bearer import requires
from arkloop.api.endpoints.delivery import cancel_after_leave
from arkloop.api.endpoints.following import EVENT_STREAM, reserve_stream
from arkloop.api.endpoints.new_runs import CREATING
from arkloop.api.http import errors
from arkloop.api.http.current import actor, connections
from arkloop.api.http.described import Frames, described
from arkloop.api.http.end_users import refuse_fields
from arkloop.api.http.idempotency import answered_once, refuse_key
from arkloop.api.http.json_body import BodyLimits, NoArguments, query_args, read_object
from arkloop.api.http.schema import Schema
from arkloop.api.protocols import (
    agui_echoes,
    agui_facts,
    agui_requests,
    agui_runs,
    agui_threads,
    agui_versions,
    sent_files,
)
from arkloop.api.protocols.agui_facts import AguiFacts
from arkloop.api.protocols.agui_frames import without_number
from arkloop.api.protocols.agui_messages import PackedMessages
from arkloop.api.protocols.agui_projection import AguiProjection
from arkloop.api.protocols.agui_requests import MAX_ID_CHARACTERS, MAX_MESSAGES, AguiRequest
from arkloop.api.protocols.agui_runs import Part, SentMeanwhile
from arkloop.api.protocols.agui_versions import PROTOCOL_VERSION
from arkloop.api.protocols.projection import projected
from arkloop.api.streaming import sse
from arkloop.shared.catalog import model_routes, personas
from arkloop.shared.errors import (
    Conflict,
    EventsLost,
    IdempotencyConflict,
    InvalidRequest,
    RunNotFound,
    StreamLimitExceeded,
)
from arkloop.shared.ids import parse_id
from arkloop.shared.runs import queries
from arkloop.shared.runs.approvers import ApprovalReserved, EditReserved
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.threads import threads
from arkloop.shared.times import EPOCH

bp = Blueprint("agui", __name__)

_LIMITS = BodyLimits(
    most_bytes=sent_files.MAX_BODY_BYTES, most_values=200_000, remedy=sent_files.REMEDY
)
_OTHER_INPUT = "A request with this runId had another input; each input needs a runId of its own."
_CURSOR = re.compile(r"([0-9a-f-]{36})\.([0-9]{1,9})\.([0-9]{1,18})")


#: A `RunAgentInput`, of which the service reads these members.
INPUT = {
    "type": "object",
    "properties": {
        "threadId": {"type": "string", "minLength": 1, "maxLength": MAX_ID_CHARACTERS},
        "runId": {"type": "string", "minLength": 1, "maxLength": MAX_ID_CHARACTERS},
        "messages": {"type": "array", "items": {"type": "object"}, "maxItems": MAX_MESSAGES},
        "tools": {"type": ["array", "null"], "items": {"type": "object"}},
        "context": {"type": ["array", "null"], "items": {"type": "object"}},
        "resume": {"type": ["array", "null"], "items": {"type": "object"}},
        "protocolVersion": {"type": ["string", "null"]},
    },
    "required": ["threadId", "runId", "messages"],
}


class AguiFrames(Frames):
    """Server-Sent Events of AG-UI; most have an `id`."""


class AgentQuery(Schema):
    """The agent that an address names: a client has an address for each."""

    persona_id = fields.String(validate=validate.Regexp(rf"\A{personas.PERSONA_ID.pattern}\Z"))
    route_id = fields.String(validate=validate.Regexp(rf"\A{model_routes.ROUTE_ID.pattern}\Z"))
    on_disconnect = fields.String(validate=validate.OneOf(["continue", "cancel"]))


_QUERY, _NO_ARGUMENTS = AgentQuery(), NoArguments()


def _go_on() -> None:
    """Leave the run alone when its client leaves."""


@bp.post("/v1/agui")
@requires("data.runs.write", also=["data.runs.read", "data.threads.write"], end_users=True)
@described(
    body=INPUT,
    query=AgentQuery,
    returns={EVENT_STREAM: AguiFrames},
    raises=(*CREATING, RunNotFound, EventsLost, ApprovalReserved, EditReserved),
)
def run_agent() -> Response:
    """Run an agent by AG-UI; responds 200 with the events of the run."""
    args, wanted = query_args(_QUERY), _read()
    refuse_key()  # the client's `runId` is one
    refuse_fields(args, "route_id")
    refuse_fields({"context": list(wanted.context)}, "context")
    reserve_stream()
    try:
        part = _start(wanted, args)
    except IdempotencyConflict as error:
        return _stream(wanted, RunErrorEvent(message=_OTHER_INPUT, code=error.code))
    except Conflict as error:
        why = errors.in_words(str(error), error.details)
        return _stream(wanted, RunErrorEvent(message=why, code=error.code))
    except InvalidRequest as error:
        if not wanted.resume:
            raise
        # The protocol has these reported in the stream.
        why = "; ".join(f"{name}: {reasons[0]}" for name, reasons in error.details.items())
        return _stream(wanted, RunErrorEvent(message=why or str(error), code=error.code))
    on_leave = _go_on
    if _cancels(args):
        on_leave = partial(cancel_after_leave, connections(), actor(), part.run_id)
    with connections().reading() as sql:
        run = queries.get(sql, actor(), part.run_id)
        echoes = part.echoes
        if echoes is None:
            echoes = agui_echoes.earlier(sql, wanted, run["thread_id"])
        echoes |= agui_echoes.not_kept(sql, wanted, run)
    wanted = agui_echoes.without(wanted, echoes)
    if part.pending:
        left: list[Any] = wanted.messages
        corrections = [MessagesSnapshotEvent(messages=left)] if echoes else []
        outcome = RunFinishedSuccessOutcome(pending_tool_call_ids=part.pending)
        return _stream(wanted, *corrections, _finished(wanted, outcome))
    facts = agui_facts.facts_of(run, wanted.thread_id, wanted.run_id)
    projection = AguiProjection(
        facts,
        part.waits,
        earlier=PackedMessages(wanted.messages),
        connects=part.connects,
        corrects=bool(echoes),  # pages show the first message under a call as its result
        lacking=wanted.open_calls,  # other pages may have sent results of the same turn
        given_results=wanted.given_results(part.run_id),
        is_0_0=wanted.is_0_0,
    )
    return _projected(projection, facts, on_leave)


@bp.post("/v1/agui/connect")
@requires("data.runs.read", also=["data.threads.read"], end_users=True)
@described(
    body=INPUT,
    returns={EVENT_STREAM: AguiFrames},
    headers=["Last-Event-ID"],
    raises=[RunNotFound, EventsLost, StreamLimitExceeded],
)
def connect_agent() -> Response:
    """Show a thread as it is: its messages, and its active run from the beginning, then live.

    With `Last-Event-ID` only what follows that event.
    """
    query_args(_NO_ARGUMENTS)
    wanted = _read()
    if "Last-Event-ID" in request.headers:
        return _resumed(wanted, request.headers["Last-Event-ID"])
    with connections().reading() as sql:
        thread = agui_threads.read(sql, wanted.thread_id)
    messages: list[Any] = agui_versions.messages(thread.messages, is_0_0=wanted.is_0_0)
    if thread.active is None:
        snapshot = MessagesSnapshotEvent(messages=messages)
        return _stream(wanted, snapshot, _ended(wanted, thread.last))
    facts, waits = thread.active
    earlier = PackedMessages(messages)
    projection = AguiProjection(facts, waits, earlier=earlier, connects=True, is_0_0=wanted.is_0_0)
    return _projected(projection, facts)


def _read() -> AguiRequest:
    return agui_requests.read(read_object(_LIMITS))


def _start(wanted: AguiRequest, args: Mapping[str, Any]) -> Part:
    """Do what the request asks for once, however often it is sent with its `key`."""
    with sent_files.kept_if_used():
        stored = wanted.with_stored_files()
        parts: list[Part] = []

        def make(tx: Transaction, *, looks_again: bool = True) -> Response:
            agent = args.get("persona_id"), args.get("route_id")
            # A run that is cancelled when its client leaves ends with the response that was lost.
            joins = not _cancels(args)
            part = agui_runs.start(tx, stored, *agent, joins=joins, looks_again=looks_again)
            parts.append(part)
            shown = {"waits": part.waits, "pending": part.pending, "connects": part.connects}
            return jsonify(run_id=str(part.run_id), **shown)

        key, essence = wanted.key, wanted.essence()
        try:
            made = answered_once(key, essence, make).get_json()
        except SentMeanwhile:
            # That run is joined now, or has ended.
            joining = partial(make, looks_again=False)
            made = answered_once(key, essence, joining).get_json()
    if parts:
        return parts[-1]
    return Part(
        run_id=UUID(made["run_id"]),
        waits=made["waits"],
        pending=made["pending"],
        connects=made.get("connects", False),  # processes of earlier releases have stored others
    )


def _cancels(args: Mapping[str, Any]) -> bool:
    """Return whether the run is to be cancelled when its client leaves."""
    return args.get("on_disconnect") == "cancel"


def _resumed(wanted: AguiRequest, cursor: str) -> Response:
    found = _CURSOR.fullmatch(cursor)
    run_id = parse_id(found[1]) if found is not None else None
    if found is None or run_id is None:
        raise InvalidRequest(**{"Last-Event-ID": ["must be the id of an event of this endpoint"]})
    with connections().reading() as sql:
        thread = threads.find(sql, actor(), wanted.thread_id)
        run = queries.get(sql, actor(), run_id)
        if thread is None or run["thread_id"] != thread.id:
            raise RunNotFound()
        facts, waits = agui_facts.facts_of(run, wanted.thread_id), int(found[2])
        echoes = agui_echoes.earlier(sql, wanted, thread.id)
        echoes |= agui_echoes.not_kept(sql, wanted, run)
        wanted = agui_echoes.without(wanted, echoes)
        given = wanted.given_results(run_id)
        messages: list[Any] = wanted.messages
        if not (echoes or given):
            # The client may have sent none. They are needed where the protocol takes text back.
            found_there = agui_threads.messages_before(sql, thread.id, run)
            messages = agui_versions.messages(found_there, is_0_0=wanted.is_0_0)
    projection = AguiProjection(
        facts,
        waits,
        earlier=PackedMessages(messages),
        corrects=bool(echoes),
        after=int(found[3]),
        lacking=wanted.open_calls,
        given_results=given,
        is_0_0=wanted.is_0_0,
    )
    return _projected(projection, facts)


def _projected(
    projection: AguiProjection, facts: AguiFacts, on_leave: Callable[[], None] = _go_on
) -> Response:
    opening = projection.opening()
    return projected(facts.run_id, actor(), projection, opening=opening, on_leave=on_leave)


def _ended(wanted: AguiRequest, last: Row[Any] | None) -> BaseEvent:
    """Return the event with which the last run of a thread has ended, as its followers got it.

    An error has the time at which the run failed, so that pages can tell one that they have shown.
    """
    if last is not None and last.state == RunState.FAILED:
        failed_at = (last.ended_at - EPOCH) // timedelta(milliseconds=1)
        error = {"message": last.error_message, "code": last.error_code}
        return RunErrorEvent(**error, timestamp=failed_at)
    if last is not None and last.state == RunState.CANCELLED:
        return _finished(wanted, RunFinishedCancelledOutcome())
    return _finished(wanted, RunFinishedSuccessOutcome())


def _finished(wanted: AguiRequest, outcome: Any) -> RunFinishedEvent:
    ids = {"thread_id": wanted.thread_id, "run_id": wanted.run_id}
    return agui_versions.finished(outcome, is_0_0=wanted.is_0_0, **ids)


def _stream(wanted: AguiRequest, *events: BaseEvent) -> Response:
    """Return a stream of a run that has nothing but these events."""
    started = RunStartedEvent(
        thread_id=wanted.thread_id, run_id=wanted.run_id, protocol_version=PROTOCOL_VERSION
    )
    frames = [without_number(event) for event in (started, *events)]
    return Response(frames, headers=sse.HEADERS)
