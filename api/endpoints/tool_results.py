"""`POST /v1/runs/{id}/tool-results`: results of tool calls that are made outside the service."""

import json
from typing import Any, ClassVar
from uuid import UUID

from flask import Blueprint, Response, g, jsonify, request
from marshmallow import fields, validate

from arkloop.api.auth import request_limits, stream_tickets
from arkloop.api.auth.bearer import authenticator, bearer_token
from arkloop.api.http.current import actor, settings
from arkloop.api.http.described import Ok, described
from arkloop.api.http.fields import JsonSchema, StrictBoolean
from arkloop.api.http.idempotency import idempotent
from arkloop.api.http.json_body import query_args, read_items
from arkloop.api.http.path_ids import check as check_ids
from arkloop.api.http.schema import Schema
from arkloop.shared.actors import Actor
from arkloop.shared.errors import (
    Forbidden,
    InvalidRequest,
    NotActive,
    NotWaiting,
    ToolResultConflict,
)
from arkloop.shared.runs import commands
from arkloop.shared.runs.pending_calls import CallResult
from arkloop.shared.storage.connections import Transaction

bp = Blueprint("tool_results", __name__)

MAX_RESULTS = 64
MAX_CALL_ID_CHARACTERS = 256


class Output(fields.Field[str]):
    """A string, which is taken as it is, or any other JSON value, which becomes its text."""

    json_schema: ClassVar[JsonSchema] = {
        "type": ["string", "number", "boolean", "object", "array"],
        "items": {},
    }

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> str:
        if isinstance(value, str):
            return value
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class ToolResult(Schema):
    tool_call_id = fields.String(required=True, validate=validate.Length(1, MAX_CALL_ID_CHARACTERS))
    output = Output(required=True)
    is_error = StrictBoolean(load_default=False)


class ToolResultsQuery(Schema):
    ticket = fields.String()


_RESULTS, _QUERY = ToolResult(many=True), ToolResultsQuery()


@bp.post("/v1/runs/<id:run_id>/tool-results")
@described(
    body=_RESULTS,
    query=ToolResultsQuery,
    returns=Ok,
    headers=["Idempotency-Key"],
    raises=[NotWaiting, NotActive, ToolResultConflict],
    security=["token", "ticket"],
    permission="data.runs.write",
)
def give_tool_results(run_id: UUID) -> Response:
    """Store results of a run's tool calls; with the last one missing it resumes. Responds 200."""
    ticket = _ticket()
    sender, is_for_events = _sender(run_id, ticket)
    g.actor = sender
    request_limits.count(sender)
    check_ids({"run_id": run_id})
    if is_for_events:
        raise Forbidden("This ticket is for events alone: request one with `tool_results`.")
    sender.check_permits("data.runs.write")
    query_args(_QUERY)
    return _give(run_id, is_from_page=ticket is not None)


@idempotent
def _give(tx: Transaction, run_id: UUID, *, is_from_page: bool) -> Response:
    results = [CallResult(**item) for item in read_items(_RESULTS, most=MAX_RESULTS)]
    _check_ids(results)
    commands.give_results(tx, actor(), run_id, results, is_from_page=is_from_page)
    return jsonify({"ok": True})


def _check_ids(results: list[CallResult]) -> None:
    seen: set[str] = set()
    for place, result in enumerate(results):
        if result.tool_call_id in seen:
            raise InvalidRequest(**{f"{place}.tool_call_id": ["duplicate tool_call_id"]})
        seen.add(result.tool_call_id)


def _ticket() -> str | None:
    """Return the ticket that identifies the sender; None if a bearer token does."""
    tickets = request.args.getlist("ticket")
    return None if not tickets or "Authorization" in request.headers else tickets[0]


def _sender(run_id: UUID, ticket: str | None) -> tuple[Actor, bool]:
    """Return the actor, identified by ticket or else by bearer token, and whether it is by a
    ticket that is for events alone. Raises: Unauthorized.
    """
    if ticket is None:
        return authenticator().identify(bearer_token()), False
    sender = stream_tickets.verify(settings(), ticket, run_id)
    authenticator().check(sender)
    sender = authenticator().with_limits(sender)
    if "data.runs.write" not in sender.permissions:
        return sender, True
    return authenticator().up_to_date(sender), False
