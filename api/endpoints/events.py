"""`/v1/runs/{id}/events`: the event stream, and tickets for browsers to open it."""

import re
from uuid import UUID

from flask import Blueprint, Response, g, jsonify, make_response, request
from marshmallow import fields, validate

from arkloop.api.auth import request_limits, stream_tickets
from arkloop.api.auth.bearer import authenticator, bearer_token, requires
from arkloop.api.endpoints.following import (
    EVENT_STREAM,
    EventFrames,
    hub,
    is_event_source,
    streaming,
    watch_of,
)
from arkloop.api.endpoints.run_types import StreamTicketShown
from arkloop.api.http.current import actor, connections, settings
from arkloop.api.http.described import described
from arkloop.api.http.fields import Digits, StrictBoolean
from arkloop.api.http.idempotency import check_key
from arkloop.api.http.json_body import query_args, read_body
from arkloop.api.http.path_ids import check as check_ids
from arkloop.api.http.schema import Schema
from arkloop.api.streaming import sse
from arkloop.shared.actors import Actor
from arkloop.shared.errors import (
    EventsLost,
    InvalidRequest,
    StreamLimitExceeded,
)
from arkloop.shared.runs import queries
from arkloop.shared.times import rfc3339

bp = Blueprint("events", __name__)

MAX_SEQ = 2**63 - 1


class EventsQuery(Schema):
    after_seq = Digits(load_default=0)
    follow = fields.String(validate=validate.OneOf(["true", "false"]), load_default="true")
    named = fields.String(validate=validate.OneOf(["true", "false"]), load_default="false")
    lastEventId = Digits()  # as polyfills of EventSource send the header
    ticket = fields.String()


class StreamTicket(Schema):
    tool_results = StrictBoolean(load_default=False)


# Made once: making a schema copies its fields.
_QUERY, _TICKET = EventsQuery(), StreamTicket()


@bp.get("/v1/runs/<id:run_id>/events")
@described(
    query=EventsQuery,
    headers=["Last-Event-ID"],
    returns={EVENT_STREAM: EventFrames},
    also={204: None},
    raises=[EventsLost, StreamLimitExceeded],
    security=["token", "ticket"],
    permission="data.runs.read",
)
def stream_events(run_id: UUID) -> Response:
    """Stream the run's events after the cursor; 204 where a browser must stop reconnecting."""
    reader, is_by_ticket = _reader(run_id)
    g.actor = reader
    request_limits.count(reader)
    check_ids({"run_id": run_id})
    reader.check_permits("data.runs.read")
    args = query_args(_QUERY)
    resumed = [args["lastEventId"]] if "lastEventId" in args else []
    if (last_event_id := request.headers.get("Last-Event-ID")) is not None:
        resumed.append(_seq(last_event_id))
    cursor = max([args["after_seq"], *resumed])
    head = hub().heads.get_seen(run_id, reader)
    if is_by_ticket and head.ended_at is not None:
        stream_tickets.check_after_end(head.ended_at)
    is_all = head.ended_at is not None and cursor >= head.last_seq
    if is_all and cursor in resumed:
        return Response(status=204)
    if request.method == "HEAD":
        return Response(iter(()), headers=sse.HEADERS)  # without a length, as a stream has none
    opening = sse.reopening(cursor) if is_event_source() else sse.HELLO
    if is_all:
        return Response(iter([opening]), headers=sse.HEADERS, direct_passthrough=True)
    hub().holes.check(run_id, cursor)
    is_followed = head.ended_at is None and args["follow"] == "true"
    until = None if is_followed else head.last_seq
    watch = watch_of(
        run_id,
        reader,
        cursor=cursor,
        named=args["named"] == "true",
        until=until,
        last_seq=head.last_seq,
    )
    return streaming(watch, opening)


@bp.post("/v1/runs/<id:run_id>/stream-ticket")
@requires("data.runs.read", end_users=True)
@described(
    body=StreamTicket,
    body_optional=True,
    returns=StreamTicketShown,
    status=201,
    headers=["Idempotency-Key of a secret"],
)
def create_stream_ticket(run_id: UUID) -> Response:
    """Create a ticket for `GET …/events?ticket=`, perhaps for tool results too; responds 201.

    Nothing is stored, so nothing is replayed: a request that is repeated with its
    `Idempotency-Key` gets a new ticket, bound to the credential that it came with.
    """
    check_key()
    sends_results = read_body(_TICKET, optional=True)["tool_results"]
    if sends_results:
        actor().check_permits("data.runs.write")
    with connections().reading() as sql:
        run = queries.get(sql, actor(), run_id)
    if sends_results:
        actor().check_may_write("the run", run["created_by_user_id"])
    ticket, expires_at = stream_tickets.issue(
        settings(), actor(), run_id, run["ended_at"], sends_results=sends_results
    )
    return make_response(jsonify(ticket=ticket, expires_at=rfc3339(expires_at)), 201)


def _reader(run_id: UUID) -> tuple[Actor, bool]:
    """Return the reader, identified by ticket or else by bearer token, and whether by ticket."""
    tickets = request.args.getlist("ticket")
    if not tickets or "Authorization" in request.headers:
        return authenticator().identify(bearer_token()), False
    reader = stream_tickets.verify(settings(), tickets[0], run_id)
    authenticator().check(reader)
    return authenticator().with_limits(reader), True


def _seq(text: str) -> int:
    if not re.fullmatch("[0-9]{1,19}", text) or int(text) > MAX_SEQ:
        raise InvalidRequest(**{"Last-Event-ID": [f"must be an integer from 0 to {MAX_SEQ}"]})
    return int(text)
