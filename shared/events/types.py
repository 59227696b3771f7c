"""Every type of event a run can have.

A new type is a class here; its fields are the keys of `data`. Fields that are
None where the contract says optional are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

from arkloop.shared.events.pending_call import PendingCall
from arkloop.shared.events.usage import Usage

TERMINAL_TYPES = frozenset({"run.completed", "run.failed", "run.cancelled"})
STEP_TYPES = frozenset({"message.completed", "tool.result"})


@dataclass(frozen=True, slots=True)
class RunStarted:
    """`metadata` is that of the run when it was claimed for the first time."""

    type: ClassVar[str] = "run.started"
    persona_id: str
    route_id: str
    model: str
    metadata: Any


@dataclass(frozen=True, slots=True)
class MessageDelta:
    type: ClassVar[str] = "message.delta"
    content: str


@dataclass(frozen=True, slots=True)
class MessageThinking:
    """The model's reasoning, where it shows it."""

    type: ClassVar[str] = "message.thinking"
    content: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of arguments that the model is still writing; `tool.call` will have the same id."""

    type: ClassVar[str] = "tool.call.delta"
    tool_call_id: str
    name: str  # what the model has written of it
    arguments_delta: str


#: Output of a model turn that is not finished, which `message.reset` makes void.
STREAMED_TYPES = (MessageDelta.type, MessageThinking.type, ToolCallDelta.type)


@dataclass(frozen=True, slots=True)
class MessageReset:
    """Events of `STREAMED_TYPES` with seq ≥ `from_seq` are void: the call is made again."""

    type: ClassVar[str] = "message.reset"
    from_seq: int
    reason: str


@dataclass(frozen=True, slots=True)
class ProviderState:
    """State, such as signed reasoning, that a vendor requires back with a turn that calls tools.

    Only the provider that gave it can read `turn` and `calls`, and only its model takes it back, at
    the same `server` (as `Route.server` marks it). `calls` has one for each call of the turn, or
    none at all.
    """

    provider: str
    model: str
    turn: Any = None
    calls: tuple[Any, ...] = ()
    server: str = ""


@dataclass(frozen=True, slots=True)
class MessageCompleted:
    """A model turn, also when it only calls tools (`content` is empty then).

    `output_errors` says why an answer does not fit the output schema: the model is called again.
    """

    type: ClassVar[str] = "message.completed"
    message_id: str
    content: str
    usage: Usage
    provider_state: ProviderState | None = None
    output_errors: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class ToolCallRequested:
    """A tool call; `arguments` is an object or text that was not one; a custom agent's any JSON."""

    type: ClassVar[str] = "tool.call"
    tool_call_id: str
    name: str
    arguments: Any
    result_from: str | None = None  # `client`: of a client tool


@dataclass(frozen=True, slots=True)
class ToolProgress:
    """A report of a call in progress; `total` is what `progress` will have reached at the end."""

    type: ClassVar[str] = "tool.progress"
    tool_call_id: str
    progress: float
    total: float | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class ToolResult:
    """`output` is text, at most 64 KiB of UTF-8; longer output is cut and says so.

    `files` are the images in it, each `{file_id, name, media_type, size}`; None without any.
    `characters` is the length of the whole output if it was cut; None: it was not.
    """

    type: ClassVar[str] = "tool.result"
    tool_call_id: str
    name: str
    output: str
    is_error: bool
    duration_ms: int
    files: list[dict[str, Any]] | None = None
    characters: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunWaitingForInput:
    """`kind` is `question`, `tool_confirmation`, `tool_results`, `form` or `authorization`.

    `approved_by` is `org` if no end user may approve. An approval is bound to the tool of this
    `mcp_tool`, `{config_id, hash}`, `worker_tool`, `{pool, name}`, or `http_tool`, `{tool_id}`.
    `calls` are those whose results are missing; `result_from` is `http` for those of HTTP tools.
    `identity` says on whose behalf they are made.
    """

    type: ClassVar[str] = "run.waiting_for_input"
    request_id: str
    kind: str
    prompt: str
    tool_call_id: str | None = None
    options: list[str] | None = None
    approved_by: str | None = None
    mcp_tool: Mapping[str, str] | None = None
    worker_tool: Mapping[str, str] | None = None
    http_tool: Mapping[str, str] | None = None
    calls: Sequence[PendingCall] | None = None
    identity: Mapping[str, Any] | None = None
    schema: Mapping[str, Any] | None = None
    url: str | None = None
    expires_at: str


@dataclass(frozen=True, slots=True)
class RunInputReceived:
    type: ClassVar[str] = "run.input_received"
    request_id: str
    content: str


@dataclass(frozen=True, slots=True)
class RunResumed:
    """`reason` is `worker_lost`, `deploy`, `input` or `sub_runs`."""

    type: ClassVar[str] = "run.resumed"
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class RunSteered:
    """A message of a user that has reached the run between two of its turns.

    `parts` are those of its content where that was a list, None otherwise.
    """

    type: ClassVar[str] = "run.steered"
    message_id: str
    content: str
    parts: list[dict[str, Any]] | None = None


#: The name of the tool whose calls start sub-runs.
DELEGATE = "delegate"


@dataclass(frozen=True, slots=True)
class RunDelegated:
    """The call has started a run with this id, which has a thread and a stream of its own."""

    type: ClassVar[str] = "run.delegated"
    tool_call_id: str
    run_id: str
    thread_id: str
    persona_id: str


@dataclass(frozen=True, slots=True)
class RunSuspended:
    """The run waits for the sub-runs of these calls, without a worker."""

    type: ClassVar[str] = "run.suspended"
    tool_call_ids: list[str]


@dataclass(frozen=True, slots=True)
class RunThrottled:
    """The route's limit is reached: the run waits for about `seconds`.

    `reason` is `requests`, `tokens` (the route's own limits), `provider` (its 429), `budget` (other
    runs hold what is left of it) or `memory` (their long threads or files fill the worker).
    """

    type: ClassVar[str] = "run.throttled"
    route_id: str
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class RunRetrying:
    """A model call has failed with `code`: try `try_number` of it follows after `seconds`."""

    type: ClassVar[str] = "run.retrying"
    route_id: str
    code: str
    try_number: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RunFallback:
    """Another route takes over the turn; `reason` is the code of the last one's failure."""

    type: ClassVar[str] = "run.fallback"
    from_route_id: str
    to_route_id: str
    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class RunSettingsDropped:
    """Model settings that the route does not support, dropped; `max_output_tokens` is lowered."""

    type: ClassVar[str] = "run.settings_dropped"
    route_id: str
    settings: list[str]


@dataclass(frozen=True, slots=True)
class RunLimitReached:
    """The run lands: its next model call is the last one, without tools.

    `stop_reason` is that of the run's end: `max_steps`, `tool_loop`, `budget` or `timeout`;
    `message` is the limit's.
    """

    type: ClassVar[str] = "run.limit_reached"
    stop_reason: str
    message: str


@dataclass(frozen=True, slots=True)
class ContextTruncated:
    """The conversation does not fit into the model's context: its oldest messages are omitted."""

    type: ClassVar[str] = "context.truncated"
    dropped_messages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextCompacted:
    """The truncation point of a thread for models with a context of `window_tokens`; 0: unknown.

    Requests omit the thread before `upto_position` and, of the run at that position, the events up
    to `upto_seq`: `dropped_messages` in all. `summary` is the text that replaces them, None without
    one. The results of a turn have at most `result_tokens` (an estimate) together in a request.
    """

    type: ClassVar[str] = "context.compacted"
    window_tokens: int
    upto_position: int = 0
    upto_seq: int = 0
    dropped_messages: int = 0
    result_tokens: int | None = None
    summary: str | None = None

    @property
    def upto(self) -> tuple[int, int]:
        return self.upto_position, self.upto_seq


@dataclass(frozen=True, slots=True)
class RouteCost:
    """The usage of one route with one model by a run so far."""

    route_id: str
    model: str
    usage: Usage
    cost_usd: Decimal


@dataclass(frozen=True, slots=True)
class RunCost:
    """The usage of a run so far, after each model call; `routes` are the parts of the sum."""

    type: ClassVar[str] = "run.cost"
    usage: Usage
    cost_usd: Decimal
    routes: tuple[RouteCost, ...] = ()


@dataclass(frozen=True, slots=True)
class RunCancelRequested:
    type: ClassVar[str] = "run.cancel_requested"
    by_user_id: str


@dataclass(frozen=True, slots=True)
class RunCompleted:
    """`message_id` is null without a text in the last turn, `output` without an output schema."""

    type: ClassVar[str] = "run.completed"
    message_id: str | None
    usage: Usage
    cost_usd: Decimal
    stop_reason: str
    output: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class RunError:
    code: str
    message: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class RunFailed:
    type: ClassVar[str] = "run.failed"
    error: RunError
    usage: Usage
    cost_usd: Decimal


@dataclass(frozen=True, slots=True)
class RunCancelled:
    """`superseded_by` is the run for which this one was cancelled, None without one.

    `cancel_reason` is `org_suspended` if the operator has suspended the org, else None.
    """

    type: ClassVar[str] = "run.cancelled"
    usage: Usage
    cost_usd: Decimal
    superseded_by: str | None = None
    cancel_reason: str | None = None


Event = (
    RunStarted
    | MessageDelta
    | MessageThinking
    | ToolCallDelta
    | MessageReset
    | MessageCompleted
    | ToolCallRequested
    | ToolProgress
    | ToolResult
    | RunWaitingForInput
    | RunInputReceived
    | RunResumed
    | RunSteered
    | RunDelegated
    | RunSuspended
    | RunThrottled
    | RunRetrying
    | RunFallback
    | RunSettingsDropped
    | RunLimitReached
    | ContextTruncated
    | ContextCompacted
    | RunCost
    | RunCancelRequested
    | RunCompleted
    | RunFailed
    | RunCancelled
)
