"""`/v1/responses`: runs by OpenAI's Responses API, for its SDKs and for Open Responses."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import UUID

from flask import Blueprint, Response, jsonify, stream_with_context
from marshmallow import fields, validate

from arkloop.api.auth.bearer import authenticator, requires
from arkloop.api.endpoints.following import EVENT_STREAM, hub, reserve_stream, watch_of
from arkloop.api.endpoints.new_runs import CREATING
from arkloop.api.http import audited
from arkloop.api.http.current import actor, connections
from arkloop.api.http.described import Frames, JsonObject, described
from arkloop.api.http.fields import Digits
from arkloop.api.http.idempotency import answered_once, check_key
from arkloop.api.http.json_body import BodyLimits, NoArguments, query_args, read_body, read_json
from arkloop.api.http.schema import Schema
from arkloop.api.protocols import (
    responses_errors,
    responses_files,
    responses_ids,
    responses_input,
    responses_runs,
    sent_files,
)
from arkloop.api.protocols.projection import fold, projected
from arkloop.api.protocols.responses_creation import Created, create, create_once
from arkloop.api.protocols.responses_ids import ResponseId
from arkloop.api.protocols.responses_object import RunFacts, response_object
from arkloop.api.protocols.responses_projection import ResponseProjection
from arkloop.api.protocols.responses_request import CreateResponse
from arkloop.api.streaming.rest import wait_for_rest
from arkloop.shared.errors import (
    EventsLost,
    InvalidRequest,
    NotActive,
    NotNewestResponse,
    NotWaiting,
    ResponseNotFound,
    RunNotFound,
    StaleInput,
    StreamLimitExceeded,
    ToolResultConflict,
    Unavailable,
)
from arkloop.shared.events import event_log
from arkloop.shared.runs import thread_order
from arkloop.shared.runs.approvers import ApprovalReserved, EditReserved
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Transaction

bp = Blueprint("responses", __name__)
responses_errors.register(bp)

#: How long a request without a stream waits: the SDKs give up after ten minutes.
WAIT_SECONDS = 590.0
#: After how long a wait a client gets the headers and then white space: Node.js waits 300 s for
#: each, and many proxies wait 60 s.
SILENT_SECONDS = 50.0
#: How long a cancel waits for the run's end.
CANCEL_SECONDS = 5.0


#: Errors of answers and results for a run that waits for them.
GIVING = (
    *(NotWaiting, NotActive, StaleInput, ToolResultConflict),
    *(ApprovalReserved, EditReserved),
)


class ResponseFrames(Frames):
    """Server-Sent Events as OpenAI's Responses API has them."""


class RetrieveQuery(Schema):
    stream = fields.String(validate=validate.OneOf(["true", "false"]), load_default="false")
    starting_after = Digits()
    include_obfuscation = fields.String(validate=validate.OneOf(["false"]))
    include = fields.String(  # as SDKs send a list
        data_key="include[]", validate=validate.OneOf(["reasoning.encrypted_content"])
    )


_CREATE, _RETRIEVE = CreateResponse(), RetrieveQuery()
#: Clients may send the whole conversation each time.
_LIMITS = BodyLimits(
    most_bytes=sent_files.MAX_BODY_BYTES, most_values=200_000, remedy=sent_files.REMEDY
)


@bp.post("/v1/responses")
@requires("data.runs.write", also=["data.runs.read", "data.threads.write"], end_users=True)
@described(
    body=CreateResponse,
    returns={"application/json": JsonObject, EVENT_STREAM: ResponseFrames},
    headers=["Idempotency-Key"],
    raises=(*CREATING, ResponseNotFound, NotNewestResponse, EventsLost, *GIVING),
    errors=responses_errors.SHAPE,
)
def create_response() -> Response:
    """Create a response, or continue one; responds 200 with it, or with its stream."""
    body = read_body(_CREATE, limits=_LIMITS)
    if body.get("stream"):
        reserve_stream()
    with sent_files.kept_if_used():
        body["input"] = responses_files.with_stored_files(body["input"])
        created = _created(body)
    try:
        response = _respond(
            created.id,
            streams=body.get("stream"),
            waits=not body.get("background"),
            is_repeatable=created.counts_once,
            is_new=not created.counts_once,
        )
    except Unavailable as error:
        if created.counts_once:
            raise
        response = _unread(created.id, body, error)
    if created.is_replay:
        response.headers["Idempotency-Replayed"] = "true"
    return response


def _unread(made: ResponseId, body: Mapping[str, Any], error: Unavailable) -> Response:
    """Return what is known of a new response that cannot be read now.

    SDKs repeat a request at each 5xx, and the same request again would create another one.
    """
    if body.get("stream"):
        return responses_errors.of_existing(error, str(made))
    created_at = (made.run_id.int >> 80) // 1_000  # by the id, a UUIDv7
    metadata = body.get("metadata") or {}
    facts = RunFacts(
        run_id=made.run_id, created_at=created_at, model=body["model"], metadata=metadata
    )
    return jsonify(response_object(facts, str(made)))


def _created(body: Mapping[str, Any]) -> Created:
    """Create the response, or find that of the request's idempotency key."""
    if (given := check_key()) is not None:
        return _created_once(given, body)
    key = _key_by_content(body)
    if key is None and not sent_files.are_stored():
        return create(body)
    if key is None:
        # Files are kept in the transaction that creates the message.
        return replace(_created_once(None, body), counts_once=False)
    made = _created_once(key, body)
    # By its items alone a client tries a turn again that has failed: the request is the same.
    while made.is_replay and body.get("previous_response_id") is None and _has_failed(made, body):
        followed = _followed_by(made)
        made = followed or _created_once(f"{key} {made.id.run_id}", body)
    return made


def _created_once(key: str | None, body: Mapping[str, Any]) -> Created:
    """Create the response, or find that of this key, if there is one."""

    def make(tx: Transaction) -> Response:
        made = create_once(tx, body)
        sent_files.mark_used(tx)
        return jsonify(id=str(made.id), fallback=made.fallback)

    answer = answered_once(key, read_json(), make)
    stored, is_replay = answer.get_json(), "Idempotency-Replayed" in answer.headers
    fallback = stored.get("fallback")  # those of earlier commits have none
    return Created(_id(stored["id"]), is_replay, fallback=fallback and UUID(fallback))


def _followed_by(made: Created) -> Created | None:
    """Return the response to the message of a request whose run has ended before it took it."""
    if made.fallback is None:
        return None
    with connections().reading() as sql, suppress(ResponseNotFound):
        responses_runs.find(sql, made.fallback)
        return Created(ResponseId(made.fallback, 0), is_replay=True)
    return None


def _has_failed(made: Created, body: Mapping[str, Any]) -> bool:
    """Return whether the run of a response has failed, was or is being cancelled.

    One that continues is not tried again, unless it has ended and the request has a message, too.
    """
    if made.id.waits and not responses_input.read(body["input"]).follows_reply:
        return False
    with connections().reading() as sql:
        run, _ = responses_runs.find(sql, made.id.run_id)
    if made.id.waits and not RunState(run["state"]).is_terminal:
        return False
    return thread_order.has_failed(run)


def _key_by_content(body: Mapping[str, Any]) -> str | None:
    """Return a key for a request that continues a response with files of its own; else None.

    Its files have other ids each time, so the same message sent again would be another one.
    """
    if not sent_files.are_stored():
        return None
    previous = body.get("previous_response_id")
    if previous is None and responses_input.read(body["input"]).continues is None:
        return None
    sent = json.dumps(read_json(), sort_keys=True).encode()
    return f"content {hashlib.sha256(sent).hexdigest()}"


@bp.get("/v1/responses/<response:response_id>")
@requires("data.runs.read", end_users=True)
@described(
    query=RetrieveQuery,
    returns={"application/json": JsonObject, EVENT_STREAM: ResponseFrames},
    raises=[EventsLost, StreamLimitExceeded],
    errors=responses_errors.SHAPE,
)
def get_response(response_id: str) -> Response:
    """Return a response as it is, or stream it from its beginning or after a cursor."""
    args = query_args(_RETRIEVE)
    streams = args["stream"] == "true"
    if "starting_after" in args and not streams:
        raise InvalidRequest(starting_after=["requires stream=true"])
    skip = args["starting_after"] + 1 if "starting_after" in args else 0
    return _respond(_existing(response_id), streams=streams, waits=False, skip=skip)


@bp.post("/v1/responses/<response:response_id>/cancel")
@bp.post("/v1/responses/<response:response_id>:cancel")
@requires("data.runs.write", also=["data.runs.read"], end_users=True)
@described(
    body=NoArguments,
    body_optional=True,
    returns=JsonObject,
    raises=[EventsLost],
    errors=responses_errors.SHAPE,
)
def cancel_response(response_id: str) -> Response:
    """Cancel the run of a response; responds 200 with the response, also if it has ended."""
    read_body(NoArguments(), optional=True)
    wanted = _existing(response_id)
    with connections().reading() as sql:
        run, _ = responses_runs.find(sql, wanted.run_id)
    audited.cancel_at_once(wanted.run_id)
    respond = partial(_respond, wanted, streams=False, waits=True, seconds=CANCEL_SECONDS)
    try:
        return respond()
    except EventsLost:
        if RunState(run["state"]).is_terminal:
            raise
        return respond(skips_lost=True)  # it is cancelled all the same


def _id(text: str) -> ResponseId:
    found = responses_ids.parse(text)
    if found is None:
        raise ResponseNotFound()
    return found


def _existing(text: str) -> ResponseId:
    """Return the id of a response. Raises: ResponseNotFound: its run has not waited that often."""
    wanted = _id(text)
    if wanted.waits:
        with connections().reading() as sql:
            waits, _ = event_log.waits(sql, wanted.run_id)
        if len(waits) < wanted.waits:
            raise ResponseNotFound()
    return wanted


def _respond(
    wanted: ResponseId,
    *,
    streams: bool | None,
    waits: bool,
    skip: int = 0,
    seconds: float = WAIT_SECONDS,
    is_repeatable: bool = False,
    is_new: bool = False,
    skips_lost: bool = False,
) -> Response:
    """Return a response, or its stream; one that `skips_lost` events does not claim to be whole."""
    with connections().reading() as sql:
        _, facts = responses_runs.find(sql, wanted.run_id)
        projection = ResponseProjection(facts, wanted.waits)
        opening, last = responses_runs.begin(sql, projection, wanted.run_id)
        if not streams:
            last = fold(sql, projection, wanted.run_id, last, skips_lost=skips_lost)
    if streams:
        how: dict[str, Any] = {"opening": opening, "after_seq": last}
        return projected(wanted.run_id, actor(), projection, skip=skip, is_new=is_new, **how)
    if waits:
        pauses = _wait(projection, wanted, last, seconds, skips_lost=skips_lost)
        for _ in pauses:
            if is_new:
                return Response(_begun(pauses, projection), mimetype="application/json")
        if is_repeatable and not projection.is_over and hub().stopping():
            # Clients take a 200 for the end; the next process waits for the same response.
            raise Unavailable("The server is stopping; send the same request again.")
    shown = projection.response()
    if skips_lost and shown["status"] == "completed":
        incomplete = {"status": "incomplete", "incomplete_details": {"reason": "events_lost"}}
        shown |= {**incomplete, "completed_at": None}
    return jsonify(shown)


def _begun(pauses: Iterator[None], projection: ResponseProjection) -> Iterator[bytes]:
    """Return the body of a new response whose status is sent before its end.

    White space in front of the object keeps the client from sending the request again, which would
    create another response. What cannot be read meanwhile leaves the response as it is.
    """

    def pieces() -> Iterator[bytes]:
        yield b" "
        with suppress(EventsLost, Unavailable):
            for _ in pauses:
                yield b" "
        yield jsonify(projection.response()).data

    return stream_with_context(pieces())


def _wait(
    projection: ResponseProjection,
    wanted: ResponseId,
    last: int,
    seconds: float,
    *,
    skips_lost: bool,
) -> Iterator[None]:
    """Wait for the end of the response, for at most these seconds, and without a connection to the
    database; yield after `SILENT_SECONDS`. Events stored after the client loses read access are
    not applied.
    """
    deadline = time.monotonic() + seconds
    while not projection.is_over and (left := deadline - time.monotonic()) > 0:
        watch = watch_of(wanted.run_id, actor(), cursor=last, last_seq=last)
        wait_for_rest(hub(), watch, min(left, SILENT_SECONDS))
        if not authenticator().still_valid(actor()):
            return
        try:
            hub().heads.get_seen(wanted.run_id, actor())
        except RunNotFound:
            return  # it may exist, and the response has its id
        with connections().reading() as sql:
            last = fold(sql, projection, wanted.run_id, last, skips_lost=skips_lost)
        if watch.has_left or hub().stopping():
            return
        if not projection.is_over:
            yield
