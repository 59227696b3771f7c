"""Responses to tool workers and agent workers, for `@described`."""

from typing import Any, TypedDict

from arkloop.api.http.described import JsonObject, Time, UuidText


class WorkerCall(TypedDict):
    """A call for a tool worker, with the identity of its run."""

    call_id: UuidText
    fence: int
    tool: str
    lease_seconds: float
    timeout_seconds: float
    arguments: JsonObject


class PolledCalls(TypedDict):
    """Calls for a tool worker, and ids of calls that it is to stop."""

    tools_hash: str
    calls: list[WorkerCall]
    cancelled: list[UuidText]


class HeldCalls(TypedDict):
    """Ids of calls that a tool worker is to stop, and of those that it has lost."""

    cancelled: list[UuidText]
    lost: list[UuidText]


class EndedCall(TypedDict):
    """An acknowledgement, with the ids of calls that the worker is to stop."""

    ok: bool
    cancelled: list[UuidText]


class CallApproval(TypedDict):
    """A person's reply to the request to approve a call with these arguments."""

    tool_call_id: str
    arguments: Any
    answer: str


class WholeResult(TypedDict):
    """The whole output of a sub-run of which `messages` have a part; null if it is too long."""

    tool_call_id: str
    output: str | None


class AgentRun(TypedDict):
    """A run with all that its agent needs."""

    run_id: UuidText
    thread_id: UuidText
    org_id: UuidText
    end_user_id: str | None
    metadata: dict[str, str]
    trace_id: str
    fence: int
    next_seq: int
    attempt: int
    cancel_requested: bool
    persona_id: str
    instructions: str
    model: str
    model_settings: JsonObject
    output_schema: JsonObject | None
    messages: list[JsonObject]
    last_turn: str | None
    sub_run_results: list[WholeResult]
    answers: list[JsonObject]
    approvals: list[CallApproval]
    begun: list[str]
    unbegun: list[str]
    checkpoint: Any
    deadline_at: Time


class PolledRuns(TypedDict):
    """Runs for an agent worker."""

    lease_seconds: float
    runs: list[AgentRun]


class HeldRun(TypedDict):
    """A run that an agent worker takes for its own."""

    run_id: UuidText
    is_held: bool
    cancel_requested: bool


class HeldRuns(TypedDict):
    """The runs of a heartbeat."""

    lease_seconds: float
    runs: list[HeldRun]


class WrittenRun(TypedDict):
    """A run after a write of its agent worker."""

    run_id: UuidText
    status: str
    cancel_requested: bool
    next_seq: int


class ReservedRun(WrittenRun):
    """A run after its agent worker has tried to reserve money."""

    is_reserved: bool
