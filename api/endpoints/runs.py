"""`/v1/runs` and the runs of a thread: list, get, cancel, input; `new_runs.py` creates them."""

import json
from datetime import timedelta
from typing import Any
from uuid import UUID

from flask import Blueprint, Response, jsonify
from marshmallow import ValidationError, fields, post_load, validate
from sqlalchemy import Row, RowMapping

from arkloop.api.auth.bearer import requires
from arkloop.api.endpoints.run_types import ListedRun, Run, ThreadRun
from arkloop.api.http import audited
from arkloop.api.http.current import actor, connections, connections_of_service
from arkloop.api.http.described import Ok, described
from arkloop.api.http.fields import Digits, Id, MetadataChange, Moment, UsdText, utf8_length
from arkloop.api.http.idempotency import idempotent, transaction_by_key
from arkloop.api.http.json_body import NoArguments, query_args, read_body
from arkloop.api.http.paging import ByTime, ClientDataQuery, page, page_args
from arkloop.api.http.schema import Schema
from arkloop.shared.billing.credits import credits_of
from arkloop.shared.catalog import model_routes, personas
from arkloop.shared.errors import NotActive, NotWaiting, StaleInput
from arkloop.shared.events.plain import money
from arkloop.shared.events.usage import RARE_TOKEN_FIELDS, TOKEN_FIELDS
from arkloop.shared.runs import commands, fair_queue, overrides, queries
from arkloop.shared.runs.approvers import ApprovalReserved, EditReserved
from arkloop.shared.runs.states import STATUSES, RunState, phase_of, status_of
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.times import rfc3339, rfc3339_or_none

bp = Blueprint("runs", __name__)

_MAX_DURATION_MS = 366 * 86_400_000


def _not_blank(text: str) -> None:
    if not text.strip():
        raise ValidationError("must not be blank")


class ChangeRun(Schema):
    metadata = MetadataChange(load_default=dict)


class RunInput(Schema):
    content = fields.String(
        required=True, validate=[utf8_length(1, commands.MAX_INPUT_BYTES), _not_blank]
    )
    request_id = Id(allow_none=True)


class ThreadRunsQuery(ClientDataQuery):
    status = fields.String(validate=validate.OneOf(sorted(STATUSES)))
    persona = fields.String(validate=validate.Regexp(rf"\A{personas.PERSONA_ID.pattern}\Z"))
    route_id = fields.String(validate=validate.Regexp(rf"\A{model_routes.ROUTE_ID.pattern}\Z"))
    api_key_id = Id()
    error_code = fields.String(validate=validate.Length(1, 100))
    min_cost_usd = UsdText()
    min_duration_ms = Digits(most=_MAX_DURATION_MS)
    created_after = Moment(dates=True)
    created_before = Moment(dates=True)

    @post_load
    def complete(self, args: dict[str, Any], **_: Any) -> dict[str, Any]:
        if args.keys() >= {"created_after", "created_before"} and (
            args["created_after"] >= args["created_before"]
        ):
            raise ValidationError({"created_before": ["must be after created_after"]})
        if "persona" in args:
            persona = args.pop("persona")
            args["persona_id" if "@" in persona else "persona_key"] = persona
        return args


class RunsQuery(ThreadRunsQuery):
    thread_id = Id()
    parent_run_id = Id()


@bp.get("/v1/threads/<id:thread_id>/runs")
@requires("data.runs.read", end_users=True)
@described(query=ThreadRunsQuery, returns=list[ThreadRun])
def list_thread_runs(thread_id: UUID) -> Response:
    """List a thread's runs, newest first."""
    args = page_args(ByTime, ThreadRunsQuery())
    with connections().reading() as sql:
        found = queries.list_of_thread(
            sql, actor(), thread_id, limit=args.limit + 1, before=args.before, filters=args.filters
        )
    return page(found.rows, args, show=_in_thread, cursor_of=ByTime.of, end=ByTime.at(found.end))


@bp.get("/v1/runs")
@requires("data.runs.read", end_users=True)
@described(query=RunsQuery, returns=list[ListedRun])
def list_runs() -> Response:
    """List runs, newest first, with their costs."""
    args = page_args(ByTime, RunsQuery())
    with connections().reading() as sql:
        found = queries.list_of_org(
            sql, actor(), limit=args.limit + 1, before=args.before, filters=args.filters
        )
    return page(found.rows, args, show=_in_list, cursor_of=ByTime.of, end=ByTime.at(found.end))


@bp.get("/v1/runs/<id:run_id>")
@requires("data.runs.read", end_users=True)
@described(returns=Run)
def get_run(run_id: UUID) -> Response:
    """Show a run."""
    query_args(NoArguments())
    with connections().reading() as sql:
        run = queries.get(sql, actor(), run_id)
    return jsonify(shown_in_full(run))


@bp.patch("/v1/runs/<id:run_id>")
@requires("data.runs.write", also=["data.runs.read"])
@described(body=ChangeRun, returns=Run)
def change_run(run_id: UUID) -> Response:
    """Merge metadata into that of a run, in whatever state it is; responds with the run."""
    body = read_body(ChangeRun())
    with connections().transaction() as tx:
        commands.change(tx, actor(), run_id, body["metadata"])
        run = queries.get(tx.sql, actor(), run_id)
    return jsonify(shown_in_full(run))


@bp.post("/v1/runs/<id:run_id>:cancel")
@requires("data.runs.write", end_users=True)
@transaction_by_key
@described(body=NoArguments, body_optional=True, returns=Ok)
def cancel_run(tx: Transaction | None, run_id: UUID) -> Response:
    """Cancel a run; responds 200 for every run that the caller may write."""
    read_body(NoArguments(), optional=True)
    if tx is None:
        audited.cancel_at_once(run_id)
    else:
        audited.cancel(tx, run_id)
    return jsonify({"ok": True})


@bp.post("/v1/runs/<id:run_id>/input")
@requires("data.runs.write", end_users=True)
@idempotent
@described(
    body=RunInput,
    returns=Ok,
    raises=[NotWaiting, NotActive, StaleInput, ApprovalReserved, EditReserved],
)
def give_input(tx: Transaction, run_id: UUID) -> Response:
    """Store a reply to a waiting run, which resumes with it; responds 200."""
    body = read_body(RunInput())
    audited.answer(tx, run_id, body["content"], body.get("request_id"))
    return jsonify({"ok": True})


def _in_thread(row: Row[Any]) -> dict[str, Any]:
    run = row._mapping
    return {
        "run_id": str(run["id"]),
        "status": status_of(run["state"]),
        "phase": _phase(run),
        "queue": queue_of(run),
        "end_user_id": run["end_user_id"],
        "metadata": run["metadata"],
        "created_at": rfc3339(run["created_at"]),
    }


def _in_list(listed: Row[Any]) -> dict[str, Any]:
    run = listed._mapping
    read, ended = run["cache_read_tokens"], run["ended_at"]
    row = {
        "run_id": str(run["id"]),
        "org_id": str(run["org_id"]),
        "thread_id": str(run["thread_id"]),
        "parent_run_id": _id_or_none(run["parent_run_id"]),
        "status": status_of(run["state"]),
        "phase": _phase(run),
        "queue": queue_of(run),
        "model": run["model"],
        "persona_id": run["persona_id"],
        "end_user_id": run["end_user_id"],
        "metadata": run["metadata"],
        "total_input_tokens": run["input_tokens"],
        "total_output_tokens": run["output_tokens"],
        "total_cost_usd": money(run["cost_usd"]),
        "duration_ms": None if ended is None else _milliseconds(ended - run["created_at"]),
        "cache_hit_rate": read / run["input_tokens"] if run["input_tokens"] else None,
        "credits_used": credits_of(run["cost_usd"]),
        "created_at": rfc3339(run["created_at"]),
        "completed_at": _ended_as(run, "completed"),
        "failed_at": _ended_as(run, "failed"),
        "stop_reason": run["stop_reason"],
        "error": error_of(run),
        "created_by_user_id": str(run["created_by_user_id"]),
        "created_by_user_name": run["login"],
        "created_by_email": run["email"],
    }
    if actor().end_user_id is not None:
        row["created_by_user_name"] = row["created_by_email"] = None
    if run["pending_input"] is not None:
        row["pending_input"] = run["pending_input"]
    return row


def shown_in_full(run: RowMapping) -> dict[str, Any]:
    """Show a run as `GET /v1/runs/{id}` does. Raises: Unavailable."""
    is_end_user = actor().end_user_id is not None
    started, waiting_since = run["started_at"], run["waiting_since"]
    waiting_ms = max(0, run["waiting_ms"])  # earlier releases have subtracted, too
    if waiting_since is not None:
        waiting_ms += _milliseconds(run["now"] - waiting_since)
    return {
        "run_id": str(run["id"]),
        "org_id": str(run["org_id"]),
        "thread_id": str(run["thread_id"]),
        "parent_run_id": _id_or_none(run["parent_run_id"]),
        "created_by_user_id": str(run["created_by_user_id"]),
        "status": status_of(run["state"]),
        "phase": _phase(run),
        "queue": _place_of(run) if run["state"] == RunState.QUEUED else queue_of(run),
        "not_before": rfc3339_or_none(run["not_before"]),
        "superseded_by": _id_or_none(run["superseded_by"]),
        "model": run["model"],
        "persona_id": run["persona_id"],
        "route_id": run["route_id"],
        "overrides": overrides.given(None if is_end_user else run["options"]),
        "trace_id": run["trace_id"],
        "end_user_id": run["end_user_id"],
        "metadata": run["metadata"],
        "attempt": run["attempt"],
        "last_seq": run["last_seq"],
        "created_at": rfc3339(run["created_at"]),
        "started_at": rfc3339_or_none(started),
        "completed_at": _ended_as(run, "completed"),
        "failed_at": _ended_as(run, "failed"),
        "cancelled_at": _ended_as(run, "cancelled"),
        "queue_ms": None if started is None else _milliseconds(started - run["created_at"]),
        "waiting_ms": waiting_ms,
        "pending_input": run["pending_input"],
        "steps": run["steps"],
        "usage": usage_of(run),
        "cost_usd": money(run["cost_usd"]),
        "tree_cost_usd": money(run["tree_cost_usd"]),
        "stop_reason": run["stop_reason"],
        "message_id": run["message_id"] and str(run["message_id"]),
        "output": _output(run),
        "error": error_of(run),
    }


def _phase(run: RowMapping) -> str:
    return phase_of(run["state"], cancel_requested=run["cancel_requested_at"] is not None)


def _id_or_none(id_: UUID | None) -> str | None:
    return None if id_ is None else str(id_)


def usage_of(run: RowMapping) -> dict[str, Any]:
    tokens = {n: run[n] for n in TOKEN_FIELDS if run[n] or n not in RARE_TOKEN_FIELDS}
    return {**tokens, "source": run["usage_source"]}


def _place_of(run: RowMapping) -> dict[str, Any] | None:
    """Show the place of a run that waits for a worker; None if one has claimed it meanwhile."""
    # Runs of other orgs are before it, too.
    with connections_of_service().reading() as sql:
        place = fair_queue.place_of(sql, run["id"])
    return None if place is None else {"position": place.position, "ahead_of_you": place.ahead}


def queue_of(run: RowMapping) -> dict[str, Any] | None:
    """Show the place of a run that waits for its thread."""
    return None if run["queue_position"] is None else {"position": run["queue_position"]}


def error_of(run: RowMapping) -> dict[str, Any] | None:
    if run["error_code"] is None:
        return None
    return {
        "code": run["error_code"],
        "message": run["error_message"],
        "retryable": run["error_retryable"],
    }


def _output(run: RowMapping) -> Any:
    text = run["output"]
    return json.loads(text) if run["output_is_json"] and text is not None else text


def _ended_as(run: RowMapping, state: str) -> str | None:
    return rfc3339_or_none(run["ended_at"] if run["state"] == state else None)


def _milliseconds(duration: timedelta) -> int:
    """Return the whole milliseconds of a time, 0 if the clock was set back meanwhile.

    They are rounded down, since `min_duration_ms` compares the time itself.
    """
    return max(0, duration // timedelta(milliseconds=1))
