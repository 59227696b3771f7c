"""`/v1/runs/{id}/events`: the event stream, and tickets for browsers to open it."""

import re
import socket
from collections.abc import Iterator
from uuid import UUID

from flask import Blueprint, Response, current_app, jsonify, request
from marshmallow import Schema, fields, validate

from api import sse, stream_tickets
from api.auth import Authenticator, authenticator, bearer_token, requires
from api.current import actor, connections, settings
from api.fields import Digits
from api.idempotency import idempotent
from api.json_body import NoArguments, query_args, read_body
from api.path_ids import check as check_ids
from api.stream_hub import StreamHub, Watch
from shared import run_queries
from shared.actors import Actor
from shared.connections import Transaction
from shared.errors import Forbidden, InvalidRequest, Unauthorized
from shared.status import RunState
from shared.times import now, rfc3339

bp = Blueprint("events", __name__)

#: A client that takes nothing for so long is closed.
BLOCKED_WRITE_SECONDS = 60
MAX_SEQ = 2**63 - 1

_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


class EventsQuery(Schema):
    after_seq = Digits(load_default=0)
    follow = fields.String(validate=validate.OneOf(["true", "false"]), load_default="true")
    named = fields.String(validate=validate.OneOf(["true", "false"]), load_default="false")
    ticket = fields.String()


@bp.get("/v1/runs/<id:run_id>/events")
def stream_events(run_id: UUID) -> Response:
    """The run's events after the cursor, as they come; 204 where a browser must stop asking."""
    reader = _reader(run_id)
    check_ids({"run_id": run_id})
    args = query_args(EventsQuery())
    last_event_id = request.headers.get("Last-Event-ID")
    cursor = max(args["after_seq"], 0 if last_event_id is None else _seq(last_event_id))
    with connections().reading() as sql:
        run = run_queries.get(sql, reader, run_id)
    ended = RunState(run["state"]).is_terminal
    if ended and cursor >= run["last_seq"] and last_event_id is not None:
        return Response(status=204)
    if request.method == "HEAD":
        return Response(headers=_HEADERS)
    finished = ended and cursor >= run["last_seq"]
    body = iter([sse.HELLO]) if finished else _body(reader, run_id, cursor, args)
    return Response(body, headers=_HEADERS, direct_passthrough=True)


@bp.post("/v1/runs/<id:run_id>/stream-ticket")
@requires("data.runs.read")
@idempotent
def create_stream_ticket(tx: Transaction, run_id: UUID) -> Response:
    """201 with a ticket for `GET …/events?ticket=`."""
    read_body(NoArguments(), optional=True)
    run = run_queries.get(tx.sql, actor(), run_id)
    ticket, expires_at = stream_tickets.issue(settings(), actor(), run_id, run["ended_at"])
    response = jsonify({"ticket": ticket, "expires_at": rfc3339(expires_at)})
    response.status_code = 201
    return response


def _reader(run_id: UUID) -> Actor:
    """Who reads: by ticket, else by bearer token."""
    tickets = request.args.getlist("ticket")
    if not tickets or "Authorization" in request.headers:
        reader = authenticator().identify(bearer_token())
        if "data.runs.read" not in reader.permissions:
            raise Forbidden()
        return reader
    reader = stream_tickets.verify(settings(), tickets[0], run_id)
    if not authenticator().still_valid(reader):
        raise Unauthorized()
    with connections().reading() as sql:
        ended_at = run_queries.get(sql, reader, run_id)["ended_at"]
    if ended_at is not None and ended_at + stream_tickets.AFTER_END < now():
        raise Unauthorized()
    return reader


def _seq(text: str) -> int:
    if not re.fullmatch("[0-9]{1,19}", text) or int(text) > MAX_SEQ:
        raise InvalidRequest(**{"Last-Event-ID": [f"must be an integer from 0 to {MAX_SEQ}"]})
    return int(text)


def _body(reader: Actor, run_id: UUID, cursor: int, args: dict[str, object]) -> Iterator[bytes]:
    """The stream; everything of the request is looked up now, the generator runs after it."""
    hub: StreamHub = current_app.extensions["arkloop.hub"]
    checker: Authenticator = authenticator()
    open_connections = connections()
    client: socket.socket | None = request.environ.get("gunicorn.socket")
    named = args["named"] == "true"

    def generate() -> Iterator[bytes]:
        before = client.gettimeout() if client is not None else None
        if client is not None:
            client.settimeout(BLOCKED_WRITE_SECONDS)
        try:
            if args["follow"] == "false":
                watch = Watch(run_id)
                watch.cursor = cursor
                yield from sse.replay(open_connections, watch, named=named)
                return
            with hub.watch(
                run_id, reader.user_id, client, lambda: checker.still_valid(reader)
            ) as watch:
                watch.cursor = cursor
                yield from sse.follow(open_connections, watch, named=named)
        finally:
            if client is not None:
                client.settimeout(before)

    return generate()
