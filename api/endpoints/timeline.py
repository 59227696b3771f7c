"""`/v1/threads/{id}/timeline`: a conversation as people see it, and what its runs have done."""

from typing import Any, NamedTuple
from uuid import UUID

from flask import Blueprint, Response
from marshmallow import fields, validate

from arkloop.api.auth.bearer import requires
from arkloop.api.endpoints import transcripts
from arkloop.api.endpoints.messages import shown as shown_message
from arkloop.api.endpoints.runs import error_of, queue_of, usage_of
from arkloop.api.endpoints.timeline_types import TimelineEntry
from arkloop.api.http.current import actor, connections
from arkloop.api.http.described import described
from arkloop.api.http.paging import PageArgs, PageQuery, page, page_args, with_next
from arkloop.shared.events.plain import money
from arkloop.shared.events.turns import Turns
from arkloop.shared.runs import timeline
from arkloop.shared.runs.states import phase_of, status_of
from arkloop.shared.times import rfc3339, rfc3339_or_none

bp = Blueprint("timeline", __name__)


class TimelineQuery(PageQuery):
    render = fields.String(validate=validate.OneOf(["json", "text"]), load_default="json")


class ByTurn(NamedTuple):
    """A cursor before this position of a thread, or before a turn of the run there."""

    position: int
    turn: int


@bp.get("/v1/threads/<id:thread_id>/timeline")
@requires("data.threads.read", also=["data.runs.read"], end_users=True)
@described(
    query=TimelineQuery,
    returns={"application/json": list[TimelineEntry], "text/plain": str},
    response_headers=["X-Stream-Cursor"],
)
def show_timeline(thread_id: UUID) -> Response:
    """Show the latest page in the order of the conversation; `before` leads to older ones."""
    args = page_args(ByTurn, TimelineQuery())
    with connections().reading() as sql:
        found = timeline.read(
            sql,
            actor(),
            thread_id,
            limit=args.limit,
            before=timeline.Place(*args.before) if args.before else None,
        )
    end = ByTurn(*found.end) if found.end else None
    response = _page(found, args, end)
    if found.newest is not None:
        response.headers["X-Stream-Cursor"] = f"{found.newest.run_id}:{found.newest.seq}"
    return response


def _page(found: timeline.Timeline, args: PageArgs[ByTurn], end: ByTurn | None) -> Response:
    if args.filters["render"] == "text":
        shown = [_shown(entry) for entry in reversed(found.entries)]
        return with_next(Response(transcripts.text_of(shown), mimetype="text/plain"), end)
    return page(
        found.entries,
        args,
        show=_shown,
        cursor_of=lambda entry: ByTurn(*entry.place),
        oldest_first=True,
        end=end,
    )


def _shown(entry: timeline.Entry) -> dict[str, Any]:
    if entry.turns is None:
        return {"type": "message", **shown_message(entry.row)}
    return _run(entry.row._mapping, entry.turns)


def _run(run: Any, turns: Turns) -> dict[str, Any]:
    """Show a run; `turns` are those from number `first_turn` on."""
    return {
        "type": "run",
        "run_id": str(run["id"]),
        "status": status_of(run["state"]),
        "phase": phase_of(run["state"], cancel_requested=run["cancel_requested_at"] is not None),
        "queue": queue_of(run),
        "seq": run["last_seq"],
        "persona_id": run["persona_id"],
        "route_id": run["route_id"],
        "model": run["model"],
        "created_by_user_id": str(run["created_by_user_id"]),
        "end_user_id": run["end_user_id"],
        "metadata": run["metadata"],
        "superseded_by": run["superseded_by"] and str(run["superseded_by"]),
        "first_turn": turns.first,
        "turns": turns.shown(),
        "pending_input": run["pending_input"],
        "message_id": run["message_id"] and str(run["message_id"]),
        "stop_reason": run["stop_reason"],
        "error": error_of(run),
        "usage": usage_of(run),
        "cost_usd": money(run["cost_usd"]),
        "created_at": rfc3339(run["created_at"]),
        "started_at": rfc3339_or_none(run["started_at"]),
        "ended_at": rfc3339_or_none(run["ended_at"]),
    }
