"""`/v1/ui/chat`: the server side of `useChat` (AI SDK UI, `ai` 5 to 7).

A chat is the thread whose `external_id` is the chat's id, and an assistant message is a run.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import UUID

from flask import Blueprint, Response, jsonify
from sqlalchemy import Connection

from arkloop.api.auth.bearer import requires
from arkloop.api.endpoints.following import EVENT_STREAM, reserve_stream
from arkloop.api.endpoints.new_runs import CREATING, OF_ORG, new_run
from arkloop.api.http import audited
from arkloop.api.http.current import actor, catalog, connections, trace_id
from arkloop.api.http.described import Frames, JsonObject, Ok, described
from arkloop.api.http.end_users import refuse_fields
from arkloop.api.http.idempotency import answered_once, refuse_key
from arkloop.api.http.json_body import BodyLimits, NoArguments, load_body, query_args, read_body
from arkloop.api.http.paging import ByPosition, PageQuery, page, page_args
from arkloop.api.protocols import ai_sdk_messages, ai_sdk_streams, sent_files
from arkloop.api.protocols.ai_sdk_answers import answer, has_bare_ids
from arkloop.api.protocols.ai_sdk_dialects import NEWEST, Dialect, ends_response
from arkloop.api.protocols.ai_sdk_messages import CLIENT_ID
from arkloop.api.protocols.ai_sdk_requests import (
    CHAT,
    LIMITS,
    DialectQuery,
    StreamQuery,
    content_of,
    dialect_of,
    new_message,
    of_reader,
)
from arkloop.shared.errors import (
    EventsLost,
    IdempotencyConflict,
    IdempotencyInProgress,
    InvalidRequest,
    NameTaken,
    NotActive,
    NotWaiting,
    RunNotFound,
    StaleInput,
    StreamLimitExceeded,
    ThreadBusy,
    ThreadNotFound,
    ToolResultConflict,
)
from arkloop.shared.ids import new_id, parse_id
from arkloop.shared.runs import creation, queries, thread_entries
from arkloop.shared.runs.approvers import ApprovalReserved, EditReserved
from arkloop.shared.runs.creation import LastRunDeleted, NewThread
from arkloop.shared.runs.thread_queue import OnBusy
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.threads import threads

bp = Blueprint("ai_sdk", __name__)

#: A run, after how many of its waits the response began, and how many it passes if these are more.
_RESPONSE_ID = re.compile(r"([0-9a-f-]{36})(?:\.([0-9]{1,6})(?:\.([0-9]{1,6}))?)?")
_ASKS = (
    "The run waits for an approval, an answer or a tool's result: send it first, or stop the run."
)
#: Errors of answers and results for a run that waits for them.
GIVING = (
    *(NotWaiting, NotActive, StaleInput, ToolResultConflict),
    *(ApprovalReserved, EditReserved),
)


class ChunkFrames(Frames):
    """Server-Sent Events of the AI SDK's UI message stream; the last one is `[DONE]`."""


class Stopped(Ok):
    """An acknowledgement of a stop; `stopped` is whether a run was cancelled."""

    stopped: bool


_DIALECT, _STREAM = DialectQuery(), StreamQuery()


@bp.post("/v1/ui/chat")
@requires("data.runs.write", also=["data.runs.read", "data.threads.write"], end_users=True)
@described(
    body=CHAT,
    query=DialectQuery,
    returns={EVENT_STREAM: ChunkFrames},
    raises=(
        *(*CREATING, ThreadNotFound, RunNotFound, NameTaken, *GIVING, IdempotencyInProgress),
        *(LastRunDeleted, EventsLost),
    ),
)
def send_chat() -> Response:
    """Take a new message, a retry or answers, and stream the run from there on."""
    refuse_key()
    dialect = dialect_of(query_args(_DIALECT))
    body = load_body(CHAT, limits=LIMITS)
    refuse_fields(body, *OF_ORG)
    reserve_stream()
    message = body["message"]
    if message["role"] == "assistant" and body["trigger"] == "submit-message":
        return _answered(body, dialect)
    if message["role"] != "user":
        raise InvalidRequest(messages=["the last message must be that of the user"])
    if body["trigger"] == "submit-message":
        _check_edit(body)
    elif (run_id := _retried(body)) is not None:
        return ai_sdk_streams.stream(run_id, dialect, is_new=True)
    run_id, is_replay = _sent(body, dialect)
    if body.get("on_busy") != OnBusy.STEER:
        return ai_sdk_streams.stream(run_id, dialect, is_new=not is_replay)
    # A run that was active is offered the message. If it ends before it reads that, the message has
    # a run of its own, which pages resume: one response is one message of the assistant.
    with connections().reading() as sql:
        waits = ai_sdk_streams.waits_of(sql, run_id, dialect)
    return ai_sdk_streams.stream(run_id, dialect, until=waits.answered)


@bp.get("/v1/ui/chat/<path:chat_id>/stream")
@requires("data.runs.read", end_users=True)
@described(
    query=StreamQuery,
    returns={EVENT_STREAM: ChunkFrames},
    also={204: None},
    raises=[RunNotFound, EventsLost, StreamLimitExceeded],
)
def resume_chat(chat_id: str) -> Response:
    """Stream the current assistant message from its first chunk; 204 where nothing is active.

    In place of a chat, the id may be that of a response, as `x-workflow-run-id` has it.
    """
    args = query_args(_STREAM)
    dialect, start = dialect_of(args), args.get("startIndex")
    if (response := _RESPONSE_ID.fullmatch(chat_id)) and (run_id := parse_id(response[1])):
        # A chat may have an id of this form, too.
        with suppress(RunNotFound):
            after, until = int(response[2] or 0), int(response[3] or 0)
            return ai_sdk_streams.stream(
                run_id, dialect, after=after, until=max(after, until), start=start
            )
    with connections().reading() as sql:
        thread = threads.find(sql, actor(), chat_id)
        run_id = None if thread is None else thread.active_run_id
        is_active = run_id is not None
        if thread is not None and run_id is None:
            run_id = thread_entries.newest_run(sql, thread.id)
        waits = None if run_id is None else ai_sdk_streams.waits_of(sql, run_id, dialect)
    if run_id is None or waits is None:
        return ai_sdk_streams.nothing(start)
    is_lacking = "seen" in args and not waits.is_seen(run_id, args["seen"])
    if start is None and not is_lacking and (not is_active or waits.is_open):
        return ai_sdk_streams.nothing(start)
    return ai_sdk_streams.stream(run_id, dialect, until=waits.answered, start=start)


@bp.post("/v1/ui/chat/<path:chat_id>/stop")
@requires("data.runs.write", end_users=True)
@described(body=NoArguments, body_optional=True, returns=Stopped)
def stop_chat(chat_id: str) -> Response:
    """Cancel the chat's active run; responds 200 with whether there was one."""
    read_body(NoArguments(), optional=True, limits=BodyLimits(takes_text=True))
    with connections().reading() as sql:
        thread = threads.find(sql, actor(), chat_id)
    run_id = None if thread is None else thread.active_run_id
    stopped = run_id is not None and audited.cancel_at_once(run_id)
    return jsonify({"ok": True, "stopped": stopped})


@bp.get("/v1/ui/chat/<path:chat_id>/messages")
@requires("data.threads.read", also=["data.runs.read"], end_users=True)
@described(query=PageQuery, returns=list[JsonObject])
def list_chat_messages(chat_id: str) -> Response:
    """List the latest UIMessages in the order of the conversation, without one that is streamed."""
    args = page_args(ByPosition)
    with connections().reading() as sql:
        thread = threads.find(sql, actor(), chat_id)
    if thread is None:
        return jsonify([])
    before = args.before.position if args.before else None
    shown, end = ai_sdk_messages.latest(
        thread.id, of_reader(NEWEST), limit=args.limit, before=before
    )
    return page(
        shown,
        args,
        show=lambda entry: entry.message,
        cursor_of=lambda entry: ByPosition(entry.position),
        oldest_first=True,
        end=None if end is None else ByPosition(end),
    )


# ---- POST /v1/ui/chat ----


def _check_edit(body: Mapping[str, Any]) -> None:
    """Refuse to replace a message, unless it has never arrived. Raises: InvalidRequest."""
    message_id = body.get("messageId")
    if message_id is None or message_id != body["message"].get("id"):
        return
    with connections().reading() as sql:
        thread = threads.find(sql, actor(), body["id"])
        if thread and thread_entries.find_message(sql, thread.id, CLIENT_ID, message_id):
            raise InvalidRequest(messageId=["messages that were sent cannot be edited"])


def _sent(body: Mapping[str, Any], dialect: Dialect) -> tuple[UUID, bool]:
    """Create the run that answers the new message; the same message again is answered by it.

    The second value is whether the run's id is that of a stored answer: the run may be deleted.
    """
    message = body["message"]
    message_id: str | None = message.get("id")

    def make(tx: Transaction) -> Response:
        thread = threads.find(tx.sql, actor(), body["id"])
        if thread is not None:
            threads.check_end_user(thread, body.get("end_user_id"))
        if thread is not None and message_id is not None:
            known = thread_entries.find_message(tx.sql, thread.id, CLIENT_ID, message_id)
            if known is not None:
                if known.content != content.text:
                    raise _edited()
                if run_id := thread_entries.first_run(tx.sql, thread.id, after=known.position):
                    return jsonify(run_id=str(run_id))
        on_busy = body.get("on_busy")
        if on_busy is None:
            # The page has shown the message already: it waits for its turn.
            now = thread if body.get("not_before") is None else None
            on_busy = OnBusy((now and now.on_busy) or OnBusy.ENQUEUE)
            if now is not None and on_busy == OnBusy.ENQUEUE:
                _check_asks_nothing(tx.sql, now.active_run_id, dialect)
        said = new_message(message, content, CLIENT_ID)
        wanted = {**body, "message": said, "on_busy": on_busy}
        opened = NewThread(external_id=body["id"], end_user_id=body.get("end_user_id"))
        made = creation.create(tx, new_run(wanted, new_id(), opened, tx.sql))
        sent_files.mark_used(tx)
        return jsonify(run_id=str(made.run_id))

    key = None
    if message_id is not None:
        key = hashlib.sha256(f"{body['id']}\0{message_id}".encode()).hexdigest()
    try:
        with sent_files.kept_if_used():
            content = content_of(message)
            response = answered_once(key, message["parts"], make)
    except IdempotencyConflict:
        raise _edited() from None
    run_id = UUID(json.loads(response.get_data())["run_id"])
    return run_id, "Idempotency-Replayed" in response.headers


def _check_asks_nothing(sql: Connection, run_id: UUID | None, dialect: Dialect) -> None:
    """Check that the active run does not wait for the page: a message would wait behind it.

    Raises: ThreadBusy
    """
    pending = None if run_id is None else queries.get(sql, actor(), run_id)["pending_input"]
    if pending is not None and ends_response(pending, dialect):
        raise ThreadBusy(_ASKS, active_run_id=str(run_id))


def _edited() -> InvalidRequest:
    return InvalidRequest(messages=["a message of this id was sent with another content"])


def _retried(body: Mapping[str, Any]) -> UUID | None:
    """Retry the last message; None if it is not there: its request has not arrived before."""
    message_id = body["message"].get("id")
    with connections().transaction() as tx:
        thread = threads.find(tx.sql, actor(), body["id"])
        newest = None if thread is None else thread_entries.newest_message(tx.sql, thread.id)
        if thread is None or newest is None:
            return None
        if message_id is not None:
            known = thread_entries.find_message(tx.sql, thread.id, CLIENT_ID, message_id)
            if known is None:
                return None
            if known.id != newest.id:
                raise InvalidRequest(messageId=["only the last answer can be generated again"])
        # Pages send these fields with every request: they count where no run has them any more.
        given = {**body, "message": None, "on_busy": None, "not_before": None}
        has_persona = body.get("persona_id") or actor().persona_id
        made = creation.retry(
            *(tx, actor(), thread.id, catalog()),
            trace_id=trace_id(),
            otherwise=partial(new_run, given, thread.id, None, tx.sql) if has_persona else None,
        )
        return made.run_id


def _answered(body: Mapping[str, Any], dialect: Dialect) -> Response:
    """Store the answers in an assistant message, and stream what follows them."""
    message = body["message"]
    with connections().transaction() as tx:
        thread = threads.find(tx.sql, actor(), body["id"])
        if thread is None:
            raise ThreadNotFound()
        run_id = parse_id(message.get("id")) or thread.active_run_id
        if run_id is None:
            raise NotWaiting("The chat has no run that waits for an answer.")
        run = queries.get(tx.sql, actor(), run_id)
        if run["thread_id"] != thread.id:
            raise RunNotFound()
        waits = ai_sdk_streams.waits_of(tx.sql, run_id, dialect)
        try:
            number = answer(tx, actor(), run, waits, message["parts"])
        except NotWaiting:
            if dialect.org_approvals:
                raise
            # A reply to an approval that is reserved for the org is refused as such.
            of_all = ai_sdk_streams.waits_of(tx.sql, run_id, dialect._replace(org_approvals=True))
            answer(tx, actor(), run, of_all, message["parts"])
            number = waits.count
    is_bare = number > 0 and has_bare_ids(waits.asked[number - 1], message["parts"])
    until = max(number, waits.answered)
    return ai_sdk_streams.stream(run_id, dialect, after=number, until=until, has_bare_ids=is_bare)
