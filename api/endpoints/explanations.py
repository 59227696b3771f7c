"""`GET /v1/runs/{run_id}:explain`: why a run is where it is."""

from typing import Annotated, NotRequired, TypedDict
from uuid import UUID

from flask import Blueprint, Response, jsonify

from arkloop.api.auth.bearer import requires
from arkloop.api.endpoints.run_types import Status
from arkloop.api.http.current import actor, connections
from arkloop.api.http.described import Json, Time, UuidText, described
from arkloop.api.http.json_body import NoArguments, query_args
from arkloop.shared.runs import shown_explanation
from arkloop.shared.runs.reasons import Action, Reason

bp = Blueprint("explanations", __name__)


class ExplainedCall(TypedDict):
    """A tool call that has no result yet."""

    tool_call_id: str
    name: str
    started_at: Time
    tool_worker: NotRequired[Annotated[str, "The tool workers that make it."]]
    worker_state: NotRequired[
        Annotated[str, "`queued`: none of them has fetched it. `leased`: one has."]
    ]


class ExplanationDetails(TypedDict):
    """The ids, numbers and times that the sentence is about; which ones depends on the reason."""

    position: NotRequired[Annotated[int, "Its place in the queue of its thread or org, from 1 on."]]
    ahead_of_you: NotRequired[Annotated[int, "Runs of all orgs that start before it, at most."]]
    workers_alive: NotRequired[Annotated[int, "Workers of the kind that executes it."]]
    active_run_id: NotRequired[UuidText]
    active_phase: NotRequired[str]
    parent_run_id: NotRequired[UuidText]
    sub_run_ids: NotRequired[list[UuidText]]
    agent: NotRequired[str]
    worker_id: NotRequired[Annotated[UuidText, "The worker that has it, or had it last."]]
    lease_expires_at: NotRequired[Time]
    deadline_at: NotRequired[Time]
    resume_reason: NotRequired[str]
    attempt: NotRequired[int]
    crashes: NotRequired[Annotated[int, "Workers lost since its last finished step."]]
    crashes_left: NotRequired[Annotated[int, "Losses after which it fails."]]
    request_id: NotRequired[UuidText]
    kind: NotRequired[str]
    tool_name: NotRequired[str]
    tool_calls: NotRequired[list[ExplainedCall]]
    route_id: NotRequired[str]
    error_code: NotRequired[str]
    retryable: NotRequired[bool]
    try_number: NotRequired[int]
    stop_reason: NotRequired[str | None]
    steps: NotRequired[int | None]
    cancelled_by_user_id: NotRequired[UuidText]
    superseded_by: NotRequired[UuidText]


class NextAction(TypedDict):
    """The next action, and when it happens at the latest; `at` is null if that is not known."""

    action: Annotated[str, Json(enum=[action.value for action in Action])]
    at: Time | None


class RunExplanation(TypedDict):
    """The explanation of a run: the reason why it is where it is."""

    run_id: UuidText
    status: Status
    phase: str
    reason: Annotated[str, Json(enum=[reason.value for reason in Reason])]
    sentence: Annotated[str, "The same in English, for people: do not parse it."]
    since: Time | None
    next: NextAction | None
    details: ExplanationDetails


@bp.get("/v1/runs/<id:run_id>:explain")
@requires("data.runs.read", end_users=True)
@described(returns=RunExplanation)
def explain_run(run_id: UUID) -> Response:
    """Explain why a run is where it is, and what happens to it next."""
    query_args(NoArguments())
    return jsonify(shown_explanation.explained(connections(), actor(), run_id))
