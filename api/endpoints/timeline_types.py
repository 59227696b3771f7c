"""The timeline of a thread as responses show it, for `@described`."""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from arkloop.api.endpoints.run_types import (
    Message,
    PendingInput,
    QueuePlace,
    RunProblem,
    RunUsage,
    Status,
)
from arkloop.api.http.described import JsonObject, Time, UuidText


class TimelineMessage(Message):
    """A message of the user."""

    type: Literal["message"]


class TimelineCall(TypedDict):
    """A tool call; while the model writes it, it has `arguments_text` in place of `arguments`."""

    tool_call_id: str
    name: str
    arguments: NotRequired[Any]
    arguments_text: NotRequired[str]
    result: NotRequired[JsonObject | None]
    progress: NotRequired[JsonObject]
    sub_run: NotRequired[JsonObject]


class Turn(TypedDict):
    """A model turn; `message_id` is null while it is not finished."""

    message_id: UuidText | None
    reasoning: str
    text: str
    tool_calls: list[TimelineCall]
    questions: Annotated[list[JsonObject], "What the run has asked, each with its `answer`."]
    usage: Any
    output_errors: NotRequired[Any]


class TimelineRun(TypedDict):
    """A run with its turns, and the `seq` from which to continue live."""

    type: Literal["run"]
    run_id: UuidText
    status: Status
    phase: str
    queue: QueuePlace | None
    seq: int
    persona_id: str
    route_id: str
    model: str
    created_by_user_id: UuidText
    end_user_id: str | None
    metadata: dict[str, str]
    superseded_by: UuidText | None
    first_turn: int
    turns: list[Turn]
    pending_input: PendingInput | None
    message_id: UuidText | None
    stop_reason: str | None
    error: RunProblem | None
    usage: RunUsage
    cost_usd: float
    created_at: Time
    started_at: Time | None
    ended_at: Time | None


TimelineEntry = TimelineMessage | TimelineRun
