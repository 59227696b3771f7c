"""Runs, threads and messages as responses show them, for `@described`."""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from arkloop.api.http.described import JsonObject, Time, UuidText
from arkloop.shared.events.pending_call import PendingCall

Status = Literal["running", "waiting_for_input", "completed", "failed", "cancelled"]
Phase = Annotated[str, "More precise than `status`: `queued`, `executing`, `finished`, …"]


class RunUsage(TypedDict):
    """Tokens of a run; those that most models lack are left out where they are 0."""

    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: NotRequired[int]
    reasoning_tokens: NotRequired[int]
    source: Literal["reported", "estimated"]


class RunProblem(TypedDict):
    """The error of a failed run."""

    code: str
    message: str
    retryable: bool


class PendingInput(TypedDict):
    """The open request of a waiting run; the other fields depend on `kind`."""

    kind: Literal["question", "tool_confirmation", "tool_results", "form", "authorization"]
    request_id: UuidText
    prompt: str
    expires_at: Time
    options: NotRequired[list[str]]
    approved_by: NotRequired[Literal["org"]]
    tool_call_id: NotRequired[str]
    tool_name: NotRequired[str]
    arguments: NotRequired[Any]
    calls: NotRequired[list[PendingCall]]
    schema: NotRequired[JsonObject]
    url: NotRequired[str]
    on_expiry: NotRequired[Literal["continue"]]
    is_held: NotRequired[bool]
    mcp_tool: NotRequired[JsonObject]
    worker_tool: NotRequired[JsonObject]
    http_tool: NotRequired[JsonObject]


class QueuePlace(TypedDict):
    """The place of a run in its queue; `is_merged`: it took the request's message."""

    position: int
    ahead_of_you: NotRequired[Annotated[int, "Runs of all orgs that start before it, at most."]]
    is_merged: NotRequired[bool]


class Run(TypedDict):
    """A run."""

    run_id: UuidText
    org_id: UuidText
    thread_id: UuidText
    parent_run_id: UuidText | None
    created_by_user_id: UuidText
    status: Status
    phase: Phase
    queue: QueuePlace | None
    not_before: Time | None
    superseded_by: UuidText | None
    model: str
    persona_id: str
    route_id: str
    overrides: JsonObject | None
    trace_id: str
    end_user_id: str | None
    metadata: dict[str, str]
    attempt: int
    last_seq: Annotated[int, "The number of its last event."]
    created_at: Time
    started_at: Time | None
    completed_at: Time | None
    failed_at: Time | None
    cancelled_at: Time | None
    queue_ms: int | None
    waiting_ms: int
    pending_input: PendingInput | None
    steps: int | None
    usage: RunUsage
    cost_usd: float
    tree_cost_usd: float
    stop_reason: str | None
    message_id: UuidText | None
    output: Annotated[Any, "The final text, or the object that an output schema requires."]
    error: RunProblem | None


class ListedRun(TypedDict):
    """A run in the list of an org."""

    run_id: UuidText
    org_id: UuidText
    thread_id: UuidText
    parent_run_id: UuidText | None
    status: Status
    phase: Phase
    queue: QueuePlace | None
    model: str
    persona_id: str
    end_user_id: str | None
    metadata: dict[str, str]
    total_input_tokens: int
    total_output_tokens: int
    total_cost_usd: float
    duration_ms: int | None
    cache_hit_rate: float | None
    credits_used: int
    created_at: Time
    completed_at: Time | None
    failed_at: Time | None
    stop_reason: str | None
    error: RunProblem | None
    created_by_user_id: UuidText
    created_by_user_name: str | None
    created_by_email: str | None
    pending_input: NotRequired[PendingInput]


class ThreadRun(TypedDict):
    """A run in the list of its thread."""

    run_id: UuidText
    status: Status
    phase: Phase
    queue: QueuePlace | None
    end_user_id: str | None
    metadata: dict[str, str]
    created_at: Time


class SteeringMessage(TypedDict):
    """A message that was given to the active run, and the run that answers it otherwise."""

    message_id: UuidText
    fallback_run_id: UuidText


class CreatedRun(TypedDict):
    """The ids of a new run, or of the active one that was given the message."""

    run_id: UuidText
    trace_id: str
    thread_id: NotRequired[UuidText]
    queue: NotRequired[QueuePlace]
    steer: NotRequired[SteeringMessage]


class AwaitedRun(Run):
    """A run whose end was waited for, by the request that created it or gave it a message."""

    steer: NotRequired[SteeringMessage]


class Thread(TypedDict):
    """A conversation."""

    id: UuidText
    org_id: UuidText
    parent_run_id: UuidText | None
    created_by_user_id: UuidText
    title: str | None
    is_private: bool
    end_user_id: str | None
    external_id: str | None
    on_busy: Literal["reject", "enqueue", "merge", "steer", "interrupt", "rollback"]
    metadata: dict[str, str]
    active_run_id: UuidText | None
    created_at: Time
    updated_at: Time


class Message(TypedDict):
    """A message of a thread."""

    id: UuidText
    org_id: UuidText
    thread_id: UuidText
    run_id: UuidText | None
    created_by_user_id: UuidText | None
    role: Literal["user", "assistant"]
    content: Annotated[str | list[JsonObject], "As it was given."]
    metadata: dict[str, str]
    partial: bool
    created_at: Time


class StreamTicketShown(TypedDict):
    """A token that opens the stream of one run."""

    ticket: str
    expires_at: Time
