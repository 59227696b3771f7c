"""`/v1/threads/{id}/events`: the events of all runs of a thread as one stream."""

import json
import re
from typing import Any, NamedTuple, cast
from uuid import UUID

from flask import Blueprint, Response, current_app, request
from marshmallow import fields, validate

from arkloop.api.auth.bearer import requires
from arkloop.api.endpoints.following import (
    EVENT_STREAM,
    hub,
    is_event_source,
    streaming,
    watch_of,
)
from arkloop.api.endpoints.messages import shown as shown_message
from arkloop.api.http.current import actor
from arkloop.api.http.described import Frames, described
from arkloop.api.http.json_body import query_args
from arkloop.api.http.schema import Schema
from arkloop.api.streaming import sse
from arkloop.api.streaming.thread_stream import ANNOUNCEMENT, Announced, ThreadRuns, ThreadStream
from arkloop.shared.errors import (
    EventsLost,
    InvalidRequest,
    StreamLimitExceeded,
    ThreadNotFound,
)
from arkloop.shared.ids import parse_id
from arkloop.shared.runs.next_runs import NextRun
from arkloop.shared.times import rfc3339

bp = Blueprint("thread_events", __name__)

_CURSOR = re.compile(r"([0-9a-f-]{36}):([0-9]{1,19})")
_JSON = json.JSONEncoder(separators=(",", ":"))


class ThreadEventsQuery(Schema):
    after = fields.String()
    follow = fields.String(validate=validate.OneOf(["true", "false"]), load_default="true")
    named = fields.String(validate=validate.OneOf(["true", "false"]), load_default="false")
    lastEventId = fields.String()  # as polyfills of EventSource send the header


class ThreadFrames(Frames):
    """Server-Sent Events: `id:` is `<run>:<seq>`, and `data:` an `Event` in one line, or one of the
    type `thread.run`, with the `seq` 0, where a run begins.
    """


class Cursor(NamedTuple):
    """The last event that a client has: its run and number, and the parameter that says so."""

    run_id: UUID
    seq: int
    parameter: str


@bp.get("/v1/threads/<id:thread_id>/events")
@requires("data.threads.read", also=["data.runs.read"], end_users=True)
@described(
    query=ThreadEventsQuery,
    headers=["Last-Event-ID of a thread"],
    returns={EVENT_STREAM: ThreadFrames},
    also={204: None},
    raises=[EventsLost, StreamLimitExceeded],
)
def stream_thread(thread_id: UUID) -> Response:
    """Stream the events of the thread's runs after the cursor, and of those that start later."""
    reader = actor()
    args = query_args(ThreadEventsQuery())
    last_event_id = request.headers.get("Last-Event-ID")
    given = {
        "Last-Event-ID": last_event_id,
        "lastEventId": args.get("lastEventId"),
        "after": args.get("after"),
    }
    cursors = [_cursor(name, text) for name, text in given.items() if text is not None]
    cursor = cursors[0] if cursors else None
    start = thread_runs().start(thread_id, cursor and cursor.run_id)
    if start is None or not start.thread.is_seen_by(reader):
        raise ThreadNotFound()
    if cursor is not None and start.position is None:
        raise InvalidRequest(**{cursor.parameter: ["is not a run of this thread"]})
    follows = args["follow"] == "true"
    position, run = start.position or 0, None
    if start.has_started:
        position -= 1
        run = thread_runs().after(thread_id, position)
    if run is not None and cursor is not None and run.run_id == cursor.run_id:
        if cursor.parameter != "after" and not follows and _has_all(thread_id, run, cursor.seq):
            return Response(status=204)
        hub().holes.check(run.run_id, cursor.seq)
    else:
        run = None
    if request.method == "HEAD":
        return Response(iter(()), headers=sse.HEADERS)
    # Its `until` keeps it from waiting for a run before it was looked for.
    watch = watch_of(
        thread_id,
        reader,
        cursor=position,
        until=position,
        awaits_run=True,
        named=args["named"] == "true",
    )
    stream = ThreadStream(hub(), thread_runs(), watch, position, start.newest_id, follows=follows)
    if run is not None and cursor is not None:
        stream.resume(run, cursor.seq)
    opening = sse.reopening(last_event_id) if last_event_id and is_event_source() else sse.HELLO
    return streaming(watch, opening, pieces=stream.pieces, follow_on=stream.follow_on)


def _has_all(thread_id: UUID, run: Announced, seq: int) -> bool:
    return seq >= run.last_seq and thread_runs().after(thread_id, run.position) is None


def thread_runs() -> ThreadRuns:
    return cast(ThreadRuns, current_app.extensions["arkloop.thread_runs"])


def announcement(run: NextRun) -> bytes:
    """Return the payload of the frame that announces a run, with what it is to answer."""
    row = run.row
    data: dict[str, Any] = {
        "run_id": str(row.id),
        "persona_id": row.persona_id,
        "route_id": row.route_id,
        "model": row.model,
        "created_by_user_id": str(row.created_by_user_id),
        "supersedes": [str(run_id) for run_id in row.supersedes],
        "messages": [shown_message(message) for message in run.messages],
        "truncated": not run.is_whole,
    }
    payload = {
        "seq": 0,
        "type": ANNOUNCEMENT,
        "data": data,
        "created_at": rfc3339(row.created_at),
    }
    return _JSON.encode(payload).encode()


def _cursor(name: str, text: str) -> Cursor:
    found = _CURSOR.fullmatch(text)
    run_id = parse_id(found[1]) if found else None
    if found is None or run_id is None or int(found[2]) > 2**63 - 1:
        raise InvalidRequest(**{name: ["must be the id of a frame of this stream: <run>:<seq>"]})
    return Cursor(run_id, int(found[2]), name)
