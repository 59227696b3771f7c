"""`/v1/runs/{run_id}/prompts`: what the vendors' APIs received."""

from typing import Annotated, Any, NotRequired, TypedDict
from uuid import UUID

from flask import Blueprint, Response, jsonify

from arkloop.api.auth.bearer import requires
from arkloop.api.http.current import actor, connections
from arkloop.api.http.described import Json, Time, described
from arkloop.api.http.fields import Digits
from arkloop.api.http.json_body import query_args
from arkloop.api.http.schema import Schema
from arkloop.shared.events.prompts import Prompt
from arkloop.shared.runs import sent_prompts

bp = Blueprint("prompts", __name__)


class PromptsQuery(Schema):
    number = Digits()


class ShownPrompt(TypedDict):
    """The prompt of one model call, or of one try of it."""

    number: Annotated[int, "Counts the run's prompts from 1 on."]
    seq: Annotated[int, "The event that followed it."]
    sent_at: Time
    attempt: int
    step: int
    try_number: int
    purpose: Annotated[str, Json(enum=["turn", "summary", "last_answer"])]
    route_id: str
    provider: str
    model: str
    bytes: Annotated[int, "The length of the body that was sent."]
    is_stored: Annotated[bool, "False: the body, or one that it is based on, was not stored."]
    body: NotRequired[Annotated[str | None, "The body, with the ids of files for their content."]]


@bp.get("/v1/runs/<id:run_id>/prompts")
@requires("data.runs.read", also=["data.threads.read"])
@described(query=PromptsQuery, returns=list[ShownPrompt])
def list_prompts(run_id: UUID) -> Response:
    """List the prompts that the run's vendors received; the body only of the one with `number`."""
    number = query_args(PromptsQuery()).get("number")
    with connections().reading() as sql:
        found = sent_prompts.read(sql, actor(), run_id)
    if number is None:
        return jsonify([_shown(prompt) for prompt in found])
    return jsonify([_with_body(prompt) for prompt in found if prompt.number == number])


def _shown(prompt: Prompt) -> dict[str, Any]:
    facts = prompt.facts
    return {
        "number": prompt.number,
        "seq": prompt.seq,
        **{name: facts[name] for name in ("sent_at", "attempt", "step", "try_number")},
        **{name: facts[name] for name in ("purpose", "route_id", "provider", "model", "bytes")},
        "is_stored": prompt.is_stored,
    }


def _with_body(prompt: Prompt) -> dict[str, Any]:
    body = prompt.body()
    return {**_shown(prompt), "body": None if body is None else body.decode("utf-8", "replace")}
