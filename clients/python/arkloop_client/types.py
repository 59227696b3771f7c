"""Types of requests, responses and events, by `make client-types`."""

# ruff: noqa: E501 # the formatter cannot break a long choice of names

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypeAlias, TypedDict


class AgentRun(TypedDict):
    "A run with all that its agent needs."

    run_id: str
    thread_id: str
    org_id: str
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
    model_settings: dict[str, Any]
    output_schema: dict[str, Any] | None
    messages: list[dict[str, Any]]
    last_turn: str | None
    sub_run_results: list[WholeResult]
    answers: list[dict[str, Any]]
    approvals: list[CallApproval]
    begun: list[str]
    unbegun: list[str]
    checkpoint: Any
    deadline_at: str


class ApiKey(TypedDict):
    "An API key, without the key itself."

    max_cost_usd: float | None
    max_cost_usd_per_month: float | None
    id: str
    org_id: str
    user_id: str
    name: str
    key_prefix: str
    scopes: list[str]
    revoked_at: str | None
    last_used_at: str | None
    expires_at: str | None
    created_at: str


class AppendEvents(TypedDict):
    run_id: str
    fence: int
    seq: NotRequired[int]
    events: NotRequired[list[dict[str, Any]]]
    checkpoint: NotRequired[str | float | bool | dict[str, Any] | list[Any] | None]
    begun: NotRequired[list[str]]


class ApproveTool(TypedDict):
    hash: str


class ApproveTools(TypedDict):
    tools: list[NamedHash]


class AskPerson(TypedDict):
    run_id: str
    fence: int
    seq: int
    events: NotRequired[list[dict[str, Any]]]
    checkpoint: NotRequired[str | float | bool | dict[str, Any] | list[Any] | None]
    begun: NotRequired[list[str]]
    unbegun: NotRequired[list[str]]
    key: NotRequired[str | None]
    question: NotRequired[str | None]
    options: NotRequired[list[str]]
    approval_of: NotRequired[str | None]


class AuditActor(TypedDict):
    "The one who acted; of an end user, with the user and key that issued their token."

    type: Literal["user", "api_key", "end_user", "operator", "unknown"]
    user_id: str | None
    api_key_id: str | None
    end_user_id: str | None


class AuditEntry(TypedDict):
    "An entry; `hash` is the SHA-256 of the canonical JSON of all its other fields."

    org_id: str
    seq: int
    created_at: str
    action: str
    actor: AuditActor
    target: AuditTarget | None
    details: dict[str, Any]
    ip: str | None
    user_agent: str | None
    prev_hash: str
    hash: str


class AuditHead(TypedDict):
    "The newest entry of an org's chain; `seq` is 0 if it has none."

    org_id: str
    seq: int
    hash: str


class AuditTarget(TypedDict):
    "The object of an action."

    type: str
    id: str


class AwaitedRun(TypedDict):
    "A run whose end was waited for, by the request that created it or gave it a message."

    run_id: str
    org_id: str
    thread_id: str
    parent_run_id: str | None
    created_by_user_id: str
    status: Literal["running", "waiting_for_input", "completed", "failed", "cancelled"]
    phase: str
    queue: QueuePlace | None
    not_before: str | None
    superseded_by: str | None
    model: str
    persona_id: str
    route_id: str
    overrides: dict[str, Any] | None
    trace_id: str
    end_user_id: str | None
    metadata: dict[str, str]
    attempt: int
    last_seq: int
    created_at: str
    started_at: str | None
    completed_at: str | None
    failed_at: str | None
    cancelled_at: str | None
    queue_ms: int | None
    waiting_ms: int
    pending_input: PendingInput | None
    steps: int | None
    usage: RunUsage
    cost_usd: float
    tree_cost_usd: float
    stop_reason: str | None
    message_id: str | None
    output: Any
    error: RunProblem | None
    steer: NotRequired[SteeringMessage]


class BeginLogin(TypedDict):
    org_id: str
    return_to: NotRequired[str]
    invitation: NotRequired[str]


class BegunLogin(TypedDict):
    "A login at the provider that waits for the person."

    authorization_url: str
    expires_at: str


class Budget(TypedDict):
    "Limits, and how much of them is used this month."

    max_cost_usd: float | None
    max_cost_usd_per_month: float | None
    month: str
    spent_usd: float
    held_usd: float


class CallApproval(TypedDict):
    "A person's reply to the request to approve a call with these arguments."

    tool_call_id: str
    arguments: Any
    answer: str


class ChangeMember(TypedDict):
    role: Literal["owner", "admin", "member"]


class ChangePassword(TypedDict):
    current: str
    new: str


class ChangeRun(TypedDict):
    metadata: NotRequired[dict[str, str | None]]


class ChangeThread(TypedDict):
    title: NotRequired[str | None]
    is_private: NotRequired[bool]
    end_user_id: NotRequired[str | None]
    external_id: NotRequired[str | None]
    on_busy: NotRequired[
        Literal["reject", "enqueue", "merge", "steer", "interrupt", "rollback", None]
    ]
    metadata: NotRequired[dict[str, str | None]]


class ChatRequest(TypedDict):
    on_disconnect: NotRequired[Literal["continue", "cancel", None]]
    route_id: NotRequired[str | None]
    persona_id: NotRequired[str | None]
    end_user_id: NotRequired[str | None]
    metadata: NotRequired[dict[str, str]]
    on_busy: NotRequired[
        Literal["reject", "enqueue", "merge", "steer", "interrupt", "rollback", None]
    ]
    not_before: NotRequired[str | None]
    instructions: NotRequired[str | None]
    variables: NotRequired[dict[str, str] | None]
    model_settings: NotRequired[dict[str, Any] | None]
    tools: NotRequired[list[dict[str, Any]] | None]
    output_schema: NotRequired[dict[str, Any] | None]
    limits: NotRequired[dict[str, Any] | None]
    id: str
    messages: list[dict[str, Any]]
    trigger: NotRequired[Literal["submit-message", "regenerate-message"]]
    messageId: NotRequired[str | None]


class ClientToolShown(TypedDict):
    "A tool that the client executes."

    name: str
    description: str
    parameters: dict[str, Any]
    client: bool
    idempotent: bool
    timeout_seconds: float | None


class CompleteCall(TypedDict):
    worker_id: str
    call_id: str
    fence: int
    output: str
    images: NotRequired[list[str]]


class CompleteRun(TypedDict):
    run_id: str
    fence: int
    seq: int
    events: NotRequired[list[dict[str, Any]]]
    checkpoint: NotRequired[str | float | bool | dict[str, Any] | list[Any] | None]
    begun: NotRequired[list[str]]
    content: str
    output: NotRequired[dict[str, Any] | None]


class ContextCompactedData(TypedDict):
    "The truncation point of a thread for models with a context of `window_tokens`; 0: unknown."

    window_tokens: int
    upto_position: int
    upto_seq: int
    dropped_messages: int
    result_tokens: NotRequired[int]
    summary: NotRequired[str]


class ContextCompactedEvent(TypedDict):
    seq: int
    type: Literal["context.compacted"]
    data: ContextCompactedData
    created_at: str


class ContextTruncatedData(TypedDict):
    "The conversation does not fit into the model's context: its oldest messages are omitted."

    dropped_messages: int


class ContextTruncatedEvent(TypedDict):
    seq: int
    type: Literal["context.truncated"]
    data: ContextTruncatedData
    created_at: str


class CostLimits(TypedDict):
    max_cost_usd: NotRequired[float | None]
    max_cost_usd_per_month: NotRequired[float | None]


class CreateApiKey(TypedDict):
    max_cost_usd: NotRequired[float | None]
    max_cost_usd_per_month: NotRequired[float | None]
    name: str
    scopes: NotRequired[
        list[
            Literal[
                "admin",
                "agents.work",
                "data.files.read",
                "data.files.write",
                "data.runs.read",
                "data.runs.write",
                "data.threads.read",
                "data.threads.write",
                "tools.work",
                "operator",
            ]
        ]
    ]
    expires_at: NotRequired[str | None]


class CreateClientToken(TypedDict):
    end_user_id: str
    scopes: list[
        Literal[
            "data.files.read",
            "data.files.write",
            "data.runs.read",
            "data.runs.write",
            "data.threads.read",
            "data.threads.write",
        ]
    ]
    thread: NotRequired[str | None]
    persona_id: NotRequired[str | None]
    lifetime_seconds: NotRequired[int]


class CreateEndpoint(TypedDict):
    url: str
    description: NotRequired[str]
    event_types: NotRequired[
        list[
            Literal[
                "run.completed",
                "run.failed",
                "run.cancelled",
                "run.waiting_for_input",
                "budget.threshold_reached",
            ]
        ]
    ]


class CreateInvitation(TypedDict):
    name: str
    role: Literal["owner", "admin", "member"]
    lifetime_seconds: NotRequired[int]


class CreateMcpConfig(TypedDict):
    name: str
    url: NotRequired[str]
    command: NotRequired[list[str]]
    headers: NotRequired[dict[str, str] | None]
    oauth: NotRequired[McpOAuth | None]
    transport: NotRequired[Literal["streamable_http", "stdio"]]


class CreateMessage(TypedDict):
    content: str | list[dict[str, Any]]
    metadata: NotRequired[dict[str, str]]


class CreateModel(TypedDict):
    model: str
    priority: NotRequired[int | None]
    is_default: NotRequired[bool]
    api: NotRequired[Literal["responses", "chat", None]]
    prices: NotRequired[PricesFields | None]
    max_output_tokens: NotRequired[int | None]
    context_tokens: NotRequired[int | None]
    first_byte_seconds: NotRequired[int | None]
    idle_seconds: NotRequired[int | None]
    accepts: NotRequired[list[Literal["image", "file"]] | None]
    model_settings: NotRequired[dict[str, Any] | None]
    requests_per_minute: NotRequired[int | None]
    tokens_per_minute: NotRequired[int | None]


class CreateProvider(TypedDict):
    name: str
    kind: Literal["anthropic", "openai"]
    base_url: NotRequired[str | None]
    api_key: NotRequired[str | None]
    platform: NotRequired[Literal["azure", "bedrock", "vertex", "foundry", None]]
    region: NotRequired[str | None]
    project_id: NotRequired[str | None]
    api_version: NotRequired[str | None]
    credentials: NotRequired[dict[str, Any] | None]
    models: NotRequired[list[CreateModel]]


class CreateResponse(TypedDict):
    model: str
    input: Any
    stream: NotRequired[bool | None]
    background: NotRequired[bool | None]
    previous_response_id: NotRequired[str | None]
    instructions: NotRequired[Any]
    tools: NotRequired[Any]
    metadata: NotRequired[dict[str, str] | None]
    safety_identifier: NotRequired[str | None]
    user: NotRequired[str | None]
    tool_choice: NotRequired[Any]
    parallel_tool_calls: NotRequired[Any]
    temperature: NotRequired[Any]
    top_p: NotRequired[Any]
    max_output_tokens: NotRequired[Any]
    reasoning: NotRequired[Any]
    text: NotRequired[Any]
    store: NotRequired[bool | None]
    truncation: NotRequired[Literal["auto", None]]
    service_tier: NotRequired[Literal["auto", "default", None]]
    include: NotRequired[list[Literal["reasoning.encrypted_content"]] | None]
    stream_options: NotRequired[dict[str, Any] | None]
    prompt_cache_key: NotRequired[str | None]
    top_logprobs: NotRequired[Literal[0, None]]
    presence_penalty: NotRequired[Literal[0, None]]
    frequency_penalty: NotRequired[Literal[0, None]]
    max_tool_calls: NotRequired[Literal[None]]
    conversation: NotRequired[Literal[None]]
    prompt: NotRequired[Literal[None]]


class CreateRun(TypedDict):
    message: NotRequired[str | dict[str, Any] | None]
    on_disconnect: NotRequired[Literal["continue", "cancel", None]]
    route_id: NotRequired[str | None]
    persona_id: NotRequired[str | None]
    end_user_id: NotRequired[str | None]
    metadata: NotRequired[dict[str, str]]
    on_busy: NotRequired[
        Literal["reject", "enqueue", "merge", "steer", "interrupt", "rollback", None]
    ]
    not_before: NotRequired[str | None]
    instructions: NotRequired[str | None]
    variables: NotRequired[dict[str, str] | None]
    model_settings: NotRequired[dict[str, Any] | None]
    tools: NotRequired[list[dict[str, Any]] | None]
    output_schema: NotRequired[dict[str, Any] | None]
    limits: NotRequired[dict[str, Any] | None]


class CreateRunAnywhere(TypedDict):
    message: NotRequired[str | dict[str, Any] | None]
    on_disconnect: NotRequired[Literal["continue", "cancel", None]]
    route_id: NotRequired[str | None]
    persona_id: NotRequired[str | None]
    end_user_id: NotRequired[str | None]
    metadata: NotRequired[dict[str, str]]
    on_busy: NotRequired[
        Literal["reject", "enqueue", "merge", "steer", "interrupt", "rollback", None]
    ]
    not_before: NotRequired[str | None]
    instructions: NotRequired[str | None]
    variables: NotRequired[dict[str, str] | None]
    model_settings: NotRequired[dict[str, Any] | None]
    tools: NotRequired[list[dict[str, Any]] | None]
    output_schema: NotRequired[dict[str, Any] | None]
    limits: NotRequired[dict[str, Any] | None]
    thread_id: NotRequired[str | None]
    thread: NotRequired[CreateThread | None]


class CreateThread(TypedDict):
    title: NotRequired[str | None]
    is_private: NotRequired[bool]
    end_user_id: NotRequired[str | None]
    external_id: NotRequired[str | None]
    on_busy: NotRequired[
        Literal["reject", "enqueue", "merge", "steer", "interrupt", "rollback", None]
    ]
    metadata: NotRequired[dict[str, str]]


class CreateTool(TypedDict):
    name: str
    description: str
    parameters: NotRequired[dict[str, Any]]
    url: str
    idempotent: NotRequired[bool]
    timeout_seconds: NotRequired[float]
    headers: NotRequired[dict[str, str] | None]


class CreatedApiKey(TypedDict):
    "A new API key with `key`, which a repeated request is not shown."

    max_cost_usd: float | None
    max_cost_usd_per_month: float | None
    id: str
    org_id: str
    user_id: str
    name: str
    key_prefix: str
    scopes: list[str]
    revoked_at: str | None
    last_used_at: str | None
    expires_at: str | None
    created_at: str
    key: NotRequired[str]


class CreatedInvitation(TypedDict):
    "A new invitation with its `token`, which a repeated request is not shown."

    id: str
    org_id: str
    name: str
    role: Literal["owner", "admin", "member"]
    created_by_user_id: str
    created_at: str
    expires_at: str
    token: NotRequired[str]


class CreatedPasswordReset(TypedDict):
    "A reset with its token, which is shown only this once."

    token: str
    expires_at: str


class CreatedRun(TypedDict):
    "The ids of a new run, or of the active one that was given the message."

    run_id: str
    trace_id: str
    thread_id: NotRequired[str]
    queue: NotRequired[QueuePlace]
    steer: NotRequired[SteeringMessage]


class CreditEntry(TypedDict):
    "A transfer of credits."

    id: str
    kind: str
    run_id: str | None
    debit_account: str
    credit_account: str
    credits: int
    note: str | None
    created_at: str


class Credits(TypedDict):
    "The balance, and a page of the ledger."

    balance: int | None
    held: int
    is_prepaid: bool
    entries: list[CreditEntry]


class DayUsage(TypedDict):
    "Sums of a day (UTC)."

    runs: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost_usd: float
    credits: int
    date: str


class DelegateTasks(TypedDict):
    run_id: str
    fence: int
    seq: int
    events: NotRequired[list[dict[str, Any]]]
    checkpoint: NotRequired[str | float | bool | dict[str, Any] | list[Any] | None]
    begun: NotRequired[list[str]]
    unbegun: NotRequired[list[str]]
    tasks: list[Task]


class EndUserBudget(TypedDict):
    "Limits of each end user, or, with `end_user_id`, of one and how much of them is used."

    max_cost_usd: float | None
    max_cost_usd_per_month: float | None
    end_user_id: NotRequired[str]
    month: NotRequired[str]
    spent_usd: NotRequired[float]
    held_usd: NotRequired[float]
    own: NotRequired[Limits]


class EndUserLimits(TypedDict):
    max_cost_usd: NotRequired[float | None]
    max_cost_usd_per_month: NotRequired[float | None]
    end_user_id: NotRequired[str | None]


class EndUserUsage(TypedDict):
    "Sums of an end user; null is runs without one."

    runs: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost_usd: float
    end_user_id: str | None


class EndedCall(TypedDict):
    "An acknowledgement, with the ids of calls that the worker is to stop."

    ok: bool
    cancelled: list[str]


class EndpointChanges(TypedDict):
    url: NotRequired[str]
    description: NotRequired[str]
    event_types: NotRequired[
        list[
            Literal[
                "run.completed",
                "run.failed",
                "run.cancelled",
                "run.waiting_for_input",
                "budget.threshold_reached",
            ]
        ]
    ]
    enabled: NotRequired[bool]


class Error(TypedDict):
    "The one shape of all errors."

    code: str
    message: str
    details: dict[str, Any]
    trace_id: str


Event: TypeAlias = "RunStartedEvent | MessageDeltaEvent | MessageThinkingEvent | ToolCallDeltaEvent | MessageResetEvent | MessageCompletedEvent | ToolCallRequestedEvent | ToolProgressEvent | ToolResultEvent | RunWaitingForInputEvent | RunInputReceivedEvent | RunResumedEvent | RunSteeredEvent | RunDelegatedEvent | RunSuspendedEvent | RunThrottledEvent | RunRetryingEvent | RunFallbackEvent | RunSettingsDroppedEvent | RunLimitReachedEvent | ContextTruncatedEvent | ContextCompactedEvent | RunCostEvent | RunCancelRequestedEvent | RunCompletedEvent | RunFailedEvent | RunCancelledEvent"


class ExplainedCall(TypedDict):
    "A tool call that has no result yet."

    tool_call_id: str
    name: str
    started_at: str
    tool_worker: NotRequired[str]
    worker_state: NotRequired[str]


class ExplanationDetails(TypedDict):
    "The ids, numbers and times that the sentence is about; which ones depends on the reason."

    position: NotRequired[int]
    ahead_of_you: NotRequired[int]
    workers_alive: NotRequired[int]
    active_run_id: NotRequired[str]
    active_phase: NotRequired[str]
    parent_run_id: NotRequired[str]
    sub_run_ids: NotRequired[list[str]]
    agent: NotRequired[str]
    worker_id: NotRequired[str]
    lease_expires_at: NotRequired[str]
    deadline_at: NotRequired[str]
    resume_reason: NotRequired[str]
    attempt: NotRequired[int]
    crashes: NotRequired[int]
    crashes_left: NotRequired[int]
    request_id: NotRequired[str]
    kind: NotRequired[str]
    tool_name: NotRequired[str]
    tool_calls: NotRequired[list[ExplainedCall]]
    route_id: NotRequired[str]
    error_code: NotRequired[str]
    retryable: NotRequired[bool]
    try_number: NotRequired[int]
    stop_reason: NotRequired[str | None]
    steps: NotRequired[int | None]
    cancelled_by_user_id: NotRequired[str]
    superseded_by: NotRequired[str]


class FailCall(TypedDict):
    worker_id: str
    call_id: str
    fence: int
    error: str


class FailRun(TypedDict):
    run_id: str
    fence: int
    seq: int
    events: NotRequired[list[dict[str, Any]]]
    checkpoint: NotRequired[str | float | bool | dict[str, Any] | list[Any] | None]
    begun: NotRequired[list[str]]
    message: str
    retryable: NotRequired[bool]
    code: NotRequired[Literal["agent.failed", "output.invalid"]]


class File(TypedDict):
    "A file, without its bytes."

    id: str
    org_id: str
    created_by_user_id: str
    name: str
    media_type: str
    size: int
    sha256: str
    created_at: str
    expires_at: str | None


class Health(TypedDict):
    "The state of a process that responds."

    status: Literal["ok"]


class Held(TypedDict):
    call_id: str
    fence: int


class HeldCalls(TypedDict):
    "Ids of calls that a tool worker is to stop, and of those that it has lost."

    cancelled: list[str]
    lost: list[str]


class HeldRun(TypedDict):
    "A run that an agent worker takes for its own."

    run_id: str
    is_held: bool
    cancel_requested: bool


class HeldRuns(TypedDict):
    "The runs of a heartbeat."

    lease_seconds: float
    runs: list[HeldRun]


class HoldCalls(TypedDict):
    worker_id: str
    wait_seconds: NotRequired[int | None]
    lease_seconds: NotRequired[int | None]
    calls: list[Held]


class HoldRuns(TypedDict):
    worker_id: str
    wait_seconds: NotRequired[int | None]
    runs: list[KnownRun]


class HttpTool(TypedDict):
    "An HTTP tool, without its secrets."

    id: str
    org_id: str
    name: str
    description: str
    parameters: dict[str, Any]
    url: str
    idempotent: bool
    timeout_seconds: float
    header_names: list[str]
    former_secret_until: str | None
    created_at: str
    updated_at: str


class HttpToolWithSecret(TypedDict):
    "An HTTP tool with its new secret, which a repeated request is not shown."

    id: str
    org_id: str
    name: str
    description: str
    parameters: dict[str, Any]
    url: str
    idempotent: bool
    timeout_seconds: float
    header_names: list[str]
    former_secret_until: str | None
    created_at: str
    updated_at: str
    signing_secret: NotRequired[str]


class IdentityProvider(TypedDict):
    "The identity provider of an org, without the client secret."

    org_id: str
    issuer: str
    client_id: str
    has_client_secret: bool
    signing_algorithm: str
    email_domains: list[str]
    joining_role: Literal["member", "admin"]
    assumes_verified_email: bool
    session_hours: int
    redirect_uri: str
    created_at: str
    updated_at: str


class Invitation(TypedDict):
    "An open invitation, without its token."

    id: str
    org_id: str
    name: str
    role: Literal["owner", "admin", "member"]
    created_by_user_id: str
    created_at: str
    expires_at: str


class KnownRun(TypedDict):
    run_id: str
    fence: int
    cancel_requested: NotRequired[bool]


class Lease(TypedDict):
    "A run that a worker executes, or has executed until it was lost."

    run_id: str
    org_id: str
    persona_id: str
    route_id: str
    agent: str | None
    attempt: int
    crashes: int
    phase: str
    worker_id: str | None
    hostname: str | None
    pid: int | None
    lease_expires_at: str | None
    is_held: bool
    last_seq: int | None
    last_event: str | None
    last_event_at: str | None
    created_at: str
    started_at: str | None


class LimitUse(TypedDict):
    "A limit of the org or of the API key, and how much of it is used."

    name: Literal["requests", "concurrent_runs", "queued_runs", "streams"]
    scope: Literal["org", "key"]
    limit: int
    used: int
    resets_at: str | None


class Limits(TypedDict):
    "Limits in USD; null is no limit."

    max_cost_usd: float | None
    max_cost_usd_per_month: float | None


class LinkAccount(TypedDict):
    password: str
    return_to: NotRequired[str]


class ListedRun(TypedDict):
    "A run in the list of an org."

    run_id: str
    org_id: str
    thread_id: str
    parent_run_id: str | None
    status: Literal["running", "waiting_for_input", "completed", "failed", "cancelled"]
    phase: str
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
    created_at: str
    completed_at: str | None
    failed_at: str | None
    stop_reason: str | None
    error: RunProblem | None
    created_by_user_id: str
    created_by_user_name: str | None
    created_by_email: str | None
    pending_input: NotRequired[PendingInput]


class LlmModel(TypedDict):
    "A model of a provider of the org; its id is a `route_id`."

    id: str
    route_id: str
    org_id: str
    provider_id: str
    model: str
    api: str | None
    priority: int | None
    is_default: bool
    prices: TokenPrices | None
    prices_source: Literal["given", "library", "unknown"]
    max_output_tokens: int | None
    context_tokens: int | None
    first_byte_seconds: float
    idle_seconds: float
    accepts: list[str]
    model_settings: dict[str, Any]
    requests_per_minute: int | None
    tokens_per_minute: int | None
    created_at: str
    updated_at: str


class LlmProvider(TypedDict):
    "A provider of the org, without its credentials."

    id: str
    org_id: str
    name: str
    kind: str
    base_url: str | None
    platform: str | None
    region: str | None
    project_id: str | None
    api_version: str | None
    has_api_key: bool
    api_key_last_four: str | None
    models: list[LlmModel]
    created_at: str
    updated_at: str


class Login(TypedDict):
    login: str
    password: str
    org_id: NotRequired[str | None]
    invitation: NotRequired[str | None]


class McpConfig(TypedDict):
    "An MCP server, without the values of its headers."

    id: str
    org_id: str
    name: str
    transport: str
    url: str | None
    command: list[str] | None
    header_names: list[str]
    oauth: McpOAuthShown | None
    tool_count: int
    tried_at: str | None
    discovered_at: str | None
    discovery_error: str | None
    created_at: str
    updated_at: str


class McpConfigChanges(TypedDict):
    name: NotRequired[str]
    url: NotRequired[str]
    command: NotRequired[list[str]]
    headers: NotRequired[dict[str, str] | None]
    oauth: NotRequired[McpOAuth | None]


class McpOAuth(TypedDict):
    client_id: NotRequired[str]
    client_secret: NotRequired[str]


class McpOAuthShown(TypedDict):
    "OAuth of an MCP server; `authorization_url` is the page where access is granted."

    client_id: str | None
    has_client_secret: bool
    authorization_url: str | None


class McpTool(TypedDict):
    "A tool of an MCP server."

    name: str
    description: str
    parameters: Any
    hash: str
    is_approved: bool
    changed: bool
    is_present: bool
    is_offered: bool
    problem: str | None
    approved_at: str | None
    seen_at: str


class Me(TypedDict):
    "The user of a token, what the token permits, and its limits."

    id: str
    username: str
    email: str
    org_id: str
    org_name: str
    orgs: list[OrgOfUser]
    role: str
    permissions: list[str]
    limits: list[LimitUse]
    weight: int
    created_at: str


class Member(TypedDict):
    "A user in an org."

    user_id: str
    login: str
    email: str
    role: Literal["owner", "admin", "member"]
    joined_at: str


class Message(TypedDict):
    "A message of a thread."

    id: str
    org_id: str
    thread_id: str
    run_id: str | None
    created_by_user_id: str | None
    role: Literal["user", "assistant"]
    content: str | list[dict[str, Any]]
    metadata: dict[str, str]
    partial: bool
    created_at: str


class MessageCompletedData(TypedDict):
    "A model turn, also when it only calls tools (`content` is empty then)."

    message_id: str
    content: str
    usage: Usage
    provider_state: NotRequired[ProviderState]
    output_errors: NotRequired[list[str]]


class MessageCompletedEvent(TypedDict):
    seq: int
    type: Literal["message.completed"]
    data: MessageCompletedData
    created_at: str


class MessageDeltaData(TypedDict):
    content: str


class MessageDeltaEvent(TypedDict):
    seq: int
    type: Literal["message.delta"]
    data: MessageDeltaData
    created_at: str


class MessageResetData(TypedDict):
    "Events of `STREAMED_TYPES` with seq ≥ `from_seq` are void: the call is made again."

    from_seq: int
    reason: str


class MessageResetEvent(TypedDict):
    seq: int
    type: Literal["message.reset"]
    data: MessageResetData
    created_at: str


class MessageThinkingData(TypedDict):
    "The model's reasoning, where it shows it."

    content: str


class MessageThinkingEvent(TypedDict):
    seq: int
    type: Literal["message.thinking"]
    data: MessageThinkingData
    created_at: str


class MetadataUsage(TypedDict):
    "Sums of a value of the runs' metadata; null is runs without the key."

    runs: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost_usd: float
    value: str | None


class ModelChanges(TypedDict):
    model: NotRequired[str]
    priority: NotRequired[int | None]
    is_default: NotRequired[bool]
    api: NotRequired[Literal["responses", "chat", None]]
    prices: NotRequired[PricesFields | None]
    max_output_tokens: NotRequired[int | None]
    context_tokens: NotRequired[int | None]
    first_byte_seconds: NotRequired[int | None]
    idle_seconds: NotRequired[int | None]
    accepts: NotRequired[list[Literal["image", "file"]] | None]
    model_settings: NotRequired[dict[str, Any] | None]
    requests_per_minute: NotRequired[int | None]
    tokens_per_minute: NotRequired[int | None]


class ModelUsage(TypedDict):
    "Sums of a model."

    runs: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost_usd: float
    model: str


class MonthUsage(TypedDict):
    "Sums of a month."

    runs: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost_usd: float
    credits: int
    month: str


class NamedHash(TypedDict):
    hash: str
    name: str


class NextAction(TypedDict):
    "The next action, and when it happens at the latest; `at` is null if that is not known."

    action: Literal["start", "queue", "expire", "continue", "retry", "take_over", "end"]
    at: str | None


NoArguments: TypeAlias = "dict[str, Any]"


class Ok(TypedDict):
    "An acknowledgement."

    ok: bool


class OpenAIError(TypedDict):
    "The shape of errors of `/v1/responses`."

    error: OpenAIProblem


class OpenAIProblem(TypedDict):
    "An error as OpenAI's clients read it; `code` is ours where they know none."

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str | None


class OrgOfUser(TypedDict):
    "An org that a user is in, and the user's role there."

    id: str
    name: str
    role: str


class OrgQueue(TypedDict):
    "The runs of an org that have not ended."

    org_id: str
    name: str
    slug: str | None
    weight: int
    suspended_at: str | None
    queued: int
    oldest_queued_at: str | None
    queued_for_agents: int
    oldest_queued_for_agents_at: str | None
    executing: int
    waiting: int
    not_yet_due: int


class OrgState(TypedDict):
    "An org, and whether it is suspended."

    org_id: str
    name: str
    slug: str | None
    suspended_at: str | None
    suspension_reason: str | None
    moved_to: str | None
    copy_began_at: str | None


class PendingCall(TypedDict):
    "A tool call whose result is missing; `pending_input` leaves out arguments that are long."

    tool_call_id: str
    name: str
    arguments: NotRequired[Any]
    idempotent: bool
    idempotency_key: str
    traceparent: str
    result_from: NotRequired[Literal["http"]]
    expires_at: NotRequired[str]


class PendingInput(TypedDict):
    "The open request of a waiting run; the other fields depend on `kind`."

    kind: Literal["question", "tool_confirmation", "tool_results", "form", "authorization"]
    request_id: str
    prompt: str
    expires_at: str
    options: NotRequired[list[str]]
    approved_by: NotRequired[Literal["org"]]
    tool_call_id: NotRequired[str]
    tool_name: NotRequired[str]
    arguments: NotRequired[Any]
    calls: NotRequired[list[PendingCall]]
    schema: NotRequired[dict[str, Any]]
    url: NotRequired[str]
    on_expiry: NotRequired[Literal["continue"]]
    is_held: NotRequired[bool]
    mcp_tool: NotRequired[dict[str, Any]]
    worker_tool: NotRequired[dict[str, Any]]
    http_tool: NotRequired[dict[str, Any]]


class Persona(TypedDict):
    "A version of a persona; one with `problems` cannot be used by this release."

    max_cost_usd: float | None
    max_cost_usd_per_month: float | None
    id: str
    key: str
    version: str
    source: Literal["builtin", "org"]
    agent: str | None
    system_prompt: str
    route_id: str | None
    fallback_route_ids: list[str]
    tools: list[str]
    client_tools: list[ClientToolShown]
    mcp: list[str]
    mcp_tool_search: bool
    tool_workers: list[str]
    require_approval: list[str]
    approved_by: Literal["anyone", "org"]
    delegates: list[str]
    max_depth: int
    max_active_children: int
    max_steps: int
    max_equal_turns: int
    max_output_tokens: int | None
    model_settings: dict[str, Any]
    max_result_tokens: int
    compaction: str
    timeout_seconds: float
    input_expires_seconds: float
    on_input_expired: str
    stream_tool_arguments: bool
    output_schema: dict[str, Any] | None
    overrides: list[str]
    on_limit: str
    created_by_user_id: str | None
    created_at: str | None
    problems: NotRequired[dict[str, list[str]]]


class PollForCalls(TypedDict):
    worker_id: str
    wait_seconds: NotRequired[int | None]
    lease_seconds: NotRequired[int | None]
    max_calls: NotRequired[int | None]
    tools: NotRequired[list[Tool]]
    tools_hash: NotRequired[str]


class PollForRuns(TypedDict):
    worker_id: str
    wait_seconds: NotRequired[int | None]
    max_runs: NotRequired[int | None]
    held: NotRequired[list[str]]


class PolledCalls(TypedDict):
    "Calls for a tool worker, and ids of calls that it is to stop."

    tools_hash: str
    calls: list[WorkerCall]
    cancelled: list[str]


class PolledRuns(TypedDict):
    "Runs for an agent worker."

    lease_seconds: float
    runs: list[AgentRun]


class PricesFields(TypedDict):
    input: float
    output: float
    cache_read: NotRequired[float | None]
    cache_write: NotRequired[float | None]


class ProviderChanges(TypedDict):
    name: NotRequired[str]
    kind: NotRequired[Literal["anthropic", "openai"]]
    base_url: NotRequired[str | None]
    api_key: NotRequired[str | None]
    platform: NotRequired[Literal["azure", "bedrock", "vertex", "foundry", None]]
    region: NotRequired[str | None]
    project_id: NotRequired[str | None]
    api_version: NotRequired[str | None]
    credentials: NotRequired[dict[str, Any] | None]


class ProviderState(TypedDict):
    "State, such as signed reasoning, that a vendor requires back with a turn that calls tools."

    provider: str
    model: str
    turn: Any
    calls: NotRequired[list[Any]]
    server: str


class PublishPersona(TypedDict):
    key: str
    version: NotRequired[str | None]
    agent: NotRequired[str | None]
    system_prompt: NotRequired[str | None]
    route_id: NotRequired[str | None]
    fallback_route_ids: NotRequired[list[str] | None]
    tools: NotRequired[list[str] | None]
    client_tools: NotRequired[list[dict[str, Any]] | None]
    mcp: NotRequired[list[str] | None]
    tool_workers: NotRequired[list[str] | None]
    mcp_tool_search: NotRequired[bool | None]
    require_approval: NotRequired[list[str] | None]
    approved_by: NotRequired[Literal["anyone", "org", None]]
    delegates: NotRequired[list[str] | None]
    max_depth: NotRequired[int | None]
    max_active_children: NotRequired[int | None]
    max_steps: NotRequired[int | None]
    max_equal_turns: NotRequired[int | None]
    max_output_tokens: NotRequired[int | None]
    compaction: NotRequired[Literal["truncate", "summary", None]]
    max_result_tokens: NotRequired[int | None]
    model_settings: NotRequired[dict[str, Any] | None]
    max_cost_usd: NotRequired[float | None]
    max_cost_usd_per_month: NotRequired[float | None]
    timeout_seconds: NotRequired[float | None]
    stream_tool_arguments: NotRequired[bool | None]
    output_schema: NotRequired[dict[str, Any] | None]
    input_expires_seconds: NotRequired[float | None]
    on_input_expired: NotRequired[Literal["fail", "continue", None]]
    overrides: NotRequired[
        list[
            Literal[
                "instructions", "variables", "model_settings", "tools", "output_schema", "limits"
            ]
        ]
        | None
    ]
    on_limit: NotRequired[Literal["answer", "fail", None]]


class QueueClass(TypedDict):
    "The orgs with this number of queued runs, and what waits there for workers of the service."

    queued_per_org: Literal["1", "2-10", "11-100", "101+"]
    orgs: int
    runs: int
    oldest_seconds: float


class QueuePlace(TypedDict):
    "The place of a run in its queue; `is_merged`: it took the request's message."

    position: int
    ahead_of_you: NotRequired[int]
    is_merged: NotRequired[bool]


class Queues(TypedDict):
    "The queues of the installation."

    measured_at: str
    classes: list[QueueClass]
    orgs: list[OrgQueue]


class Readiness(TypedDict):
    "The state of the service; `degraded` names what is missing."

    status: Literal["ok"]
    schema_version: str
    degraded: NotRequired[list[Literal["redis", "workers", "writes"]]]


class Register(TypedDict):
    login: str
    email: str
    password: str
    invitation: NotRequired[str | None]


class RegisteredUser(TypedDict):
    "A new user, who is logged in."

    access_token: str
    token_type: Literal["bearer"]
    user_id: str


class ReleaseRun(TypedDict):
    run_id: str
    fence: int
    seq: int
    events: NotRequired[list[dict[str, Any]]]
    checkpoint: NotRequired[str | float | bool | dict[str, Any] | list[Any] | None]
    begun: NotRequired[list[str]]
    unbegun: NotRequired[list[str]]


class Replay(TypedDict):
    delivery_ids: NotRequired[list[str] | None]


class ReplayedDeliveries(TypedDict):
    "The number of deliveries that are made again."

    replayed: int


class RequeuedRun(TypedDict):
    "A run after an attempt to queue it again."

    run_id: str
    was: Literal[
        "queued",
        "executing",
        "waiting",
        "suspended",
        "pending",
        "scheduled",
        "completed",
        "failed",
        "cancelled",
    ]
    outcome: Literal["queued", "held", "waiting", "ended"]
    lease_expires_at: str | None


class ReserveMoney(TypedDict):
    run_id: str
    fence: int
    usd: float
    gives_up: NotRequired[bool]


class ReservedRun(TypedDict):
    "A run after its agent worker has tried to reserve money."

    run_id: str
    status: str
    cancel_requested: bool
    next_seq: int
    is_reserved: bool


class ResetPassword(TypedDict):
    token: str
    password: str


class RotateSecret(TypedDict):
    overlap_seconds: NotRequired[float]


class Route(TypedDict):
    "A model as runs name it."

    id: str
    source: Literal["org", "server"]
    provider: str
    model: str
    is_default: bool
    priority: int | None
    prices: TokenPrices | None
    max_output_tokens: int | None
    context_tokens: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None


class RouteCost(TypedDict):
    "The usage of one route with one model by a run so far."

    route_id: str
    model: str
    usage: Usage
    cost_usd: float


class Run(TypedDict):
    "A run."

    run_id: str
    org_id: str
    thread_id: str
    parent_run_id: str | None
    created_by_user_id: str
    status: Literal["running", "waiting_for_input", "completed", "failed", "cancelled"]
    phase: str
    queue: QueuePlace | None
    not_before: str | None
    superseded_by: str | None
    model: str
    persona_id: str
    route_id: str
    overrides: dict[str, Any] | None
    trace_id: str
    end_user_id: str | None
    metadata: dict[str, str]
    attempt: int
    last_seq: int
    created_at: str
    started_at: str | None
    completed_at: str | None
    failed_at: str | None
    cancelled_at: str | None
    queue_ms: int | None
    waiting_ms: int
    pending_input: PendingInput | None
    steps: int | None
    usage: RunUsage
    cost_usd: float
    tree_cost_usd: float
    stop_reason: str | None
    message_id: str | None
    output: Any
    error: RunProblem | None


class RunCancelRequestedData(TypedDict):
    by_user_id: str


class RunCancelRequestedEvent(TypedDict):
    seq: int
    type: Literal["run.cancel_requested"]
    data: RunCancelRequestedData
    created_at: str


class RunCancelledData(TypedDict):
    "`superseded_by` is the run for which this one was cancelled, None without one."

    usage: Usage
    cost_usd: float
    superseded_by: NotRequired[str]
    cancel_reason: NotRequired[str]


class RunCancelledEvent(TypedDict):
    seq: int
    type: Literal["run.cancelled"]
    data: RunCancelledData
    created_at: str


class RunCompletedData(TypedDict):
    "`message_id` is null without a text in the last turn, `output` without an output schema."

    message_id: str | None
    usage: Usage
    cost_usd: float
    stop_reason: str
    output: NotRequired[dict[str, Any]]


class RunCompletedEvent(TypedDict):
    seq: int
    type: Literal["run.completed"]
    data: RunCompletedData
    created_at: str


class RunCostData(TypedDict):
    "The usage of a run so far, after each model call; `routes` are the parts of the sum."

    usage: Usage
    cost_usd: float
    routes: list[RouteCost]


class RunCostEvent(TypedDict):
    seq: int
    type: Literal["run.cost"]
    data: RunCostData
    created_at: str


class RunDelegatedData(TypedDict):
    "The call has started a run with this id, which has a thread and a stream of its own."

    tool_call_id: NotRequired[str]
    run_id: str
    thread_id: str
    persona_id: str


class RunDelegatedEvent(TypedDict):
    seq: int
    type: Literal["run.delegated"]
    data: RunDelegatedData
    created_at: str


class RunError(TypedDict):
    code: str
    message: NotRequired[str]
    retryable: bool


class RunExplanation(TypedDict):
    "The explanation of a run: the reason why it is where it is."

    run_id: str
    status: Literal["running", "waiting_for_input", "completed", "failed", "cancelled"]
    phase: str
    reason: Literal[
        "not_before",
        "thread.busy",
        "thread.free",
        "queue.next",
        "queue.behind_others",
        "queue.org_suspended",
        "queue.no_worker",
        "queue.no_agent_worker",
        "queue.agent_worker",
        "queue.broker_refused",
        "queue.slots_full",
        "resume.worker_lost",
        "resume.deploy",
        "resume.input",
        "resume.sub_runs",
        "waiting.answer",
        "waiting.approval",
        "waiting.form",
        "waiting.authorization",
        "waiting.client_tools",
        "waiting.http_tools",
        "waiting.sub_runs",
        "waiting.turn",
        "starting",
        "model.calling",
        "model.streaming",
        "model.retrying",
        "model.last_call",
        "throttled.requests",
        "throttled.tokens",
        "throttled.provider",
        "throttled.budget",
        "throttled.memory",
        "tools.running",
        "tools.no_worker",
        "agent.executing",
        "worker.silent",
        "cancelling",
        "ended.completed",
        "ended.at_limit",
        "ended.failed",
        "ended.cancelled",
        "ended.superseded",
    ]
    sentence: str
    since: str | None
    next: NextAction | None
    details: ExplanationDetails


class RunFailedData(TypedDict):
    error: RunError
    usage: Usage
    cost_usd: float


class RunFailedEvent(TypedDict):
    seq: int
    type: Literal["run.failed"]
    data: RunFailedData
    created_at: str


class RunFallbackData(TypedDict):
    "Another route takes over the turn; `reason` is the code of the last one's failure."

    from_route_id: str
    to_route_id: str
    model: str
    reason: str


class RunFallbackEvent(TypedDict):
    seq: int
    type: Literal["run.fallback"]
    data: RunFallbackData
    created_at: str


class RunInput(TypedDict):
    content: str
    request_id: NotRequired[str | None]


class RunInputReceivedData(TypedDict):
    request_id: str
    content: str


class RunInputReceivedEvent(TypedDict):
    seq: int
    type: Literal["run.input_received"]
    data: RunInputReceivedData
    created_at: str


class RunLimitReachedData(TypedDict):
    "The run lands: its next model call is the last one, without tools."

    stop_reason: str
    message: NotRequired[str]


class RunLimitReachedEvent(TypedDict):
    seq: int
    type: Literal["run.limit_reached"]
    data: RunLimitReachedData
    created_at: str


class RunProblem(TypedDict):
    "The error of a failed run."

    code: str
    message: str
    retryable: bool


class RunResumedData(TypedDict):
    "`reason` is `worker_lost`, `deploy`, `input` or `sub_runs`."

    attempt: int
    reason: str


class RunResumedEvent(TypedDict):
    seq: int
    type: Literal["run.resumed"]
    data: RunResumedData
    created_at: str


class RunRetryingData(TypedDict):
    "A model call has failed with `code`: try `try_number` of it follows after `seconds`."

    route_id: str
    code: str
    try_number: int
    seconds: float


class RunRetryingEvent(TypedDict):
    seq: int
    type: Literal["run.retrying"]
    data: RunRetryingData
    created_at: str


class RunSettingsDroppedData(TypedDict):
    "Model settings that the route does not support, dropped; `max_output_tokens` is lowered."

    route_id: str
    settings: list[str]


class RunSettingsDroppedEvent(TypedDict):
    seq: int
    type: Literal["run.settings_dropped"]
    data: RunSettingsDroppedData
    created_at: str


class RunStartedData(TypedDict):
    "`metadata` is that of the run when it was claimed for the first time."

    persona_id: str
    route_id: str
    model: str
    metadata: Any


class RunStartedEvent(TypedDict):
    seq: int
    type: Literal["run.started"]
    data: RunStartedData
    created_at: str


class RunSteeredData(TypedDict):
    "A message of a user that has reached the run between two of its turns."

    message_id: str
    content: str
    parts: NotRequired[list[dict[str, Any]]]


class RunSteeredEvent(TypedDict):
    seq: int
    type: Literal["run.steered"]
    data: RunSteeredData
    created_at: str


class RunSuspendedData(TypedDict):
    "The run waits for the sub-runs of these calls, without a worker."

    tool_call_ids: list[str]


class RunSuspendedEvent(TypedDict):
    seq: int
    type: Literal["run.suspended"]
    data: RunSuspendedData
    created_at: str


class RunThrottledData(TypedDict):
    "The route's limit is reached: the run waits for about `seconds`."

    route_id: str
    reason: str
    seconds: float


class RunThrottledEvent(TypedDict):
    seq: int
    type: Literal["run.throttled"]
    data: RunThrottledData
    created_at: str


class RunUsage(TypedDict):
    "Tokens of a run; those that most models lack are left out where they are 0."

    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: NotRequired[int]
    reasoning_tokens: NotRequired[int]
    source: Literal["reported", "estimated"]


class RunWaitingForInputData(TypedDict):
    "`kind` is `question`, `tool_confirmation`, `tool_results`, `form` or `authorization`."

    request_id: str
    kind: str
    prompt: str
    tool_call_id: NotRequired[str]
    options: NotRequired[list[str]]
    approved_by: NotRequired[str]
    mcp_tool: NotRequired[dict[str, str]]
    worker_tool: NotRequired[dict[str, str]]
    http_tool: NotRequired[dict[str, str]]
    calls: NotRequired[list[PendingCall]]
    identity: NotRequired[dict[str, Any]]
    schema: NotRequired[dict[str, Any]]
    url: NotRequired[str]
    expires_at: str


class RunWaitingForInputEvent(TypedDict):
    seq: int
    type: Literal["run.waiting_for_input"]
    data: RunWaitingForInputData
    created_at: str


class SessionShown(TypedDict):
    "A login; `refreshed_at` is when its cookie was last exchanged."

    id: str
    is_current: bool
    created_at: str
    refreshed_at: str
    expires_at: str


class SessionsShown(TypedDict):
    "The newest logins."

    items: list[SessionShown]


class SetIdentityProvider(TypedDict):
    issuer: str
    client_id: str
    client_secret: NotRequired[str | None]
    signing_algorithm: NotRequired[
        Literal[
            "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
        ]
    ]
    email_domains: NotRequired[list[str]]
    joining_role: NotRequired[Literal["member", "admin"]]
    assumes_verified_email: NotRequired[bool]
    session_hours: NotRequired[int]


class ShownClientToken(TypedDict):
    "A token, which is shown only this once."

    token: str
    expires_at: str
    end_user_id: str
    scopes: list[str]
    thread: str | None
    persona_id: str


class ShownPrompt(TypedDict):
    "The prompt of one model call, or of one try of it."

    number: int
    seq: int
    sent_at: str
    attempt: int
    step: int
    try_number: int
    purpose: Literal["turn", "summary", "last_answer"]
    route_id: str
    provider: str
    model: str
    bytes: int
    is_stored: bool
    body: NotRequired[str | None]


class SteeringMessage(TypedDict):
    "A message that was given to the active run, and the run that answers it otherwise."

    message_id: str
    fallback_run_id: str


class Stopped(TypedDict):
    "An acknowledgement of a stop; `stopped` is whether a run was cancelled."

    ok: bool
    stopped: bool


class StoreCheckpoint(TypedDict):
    run_id: str
    fence: int
    checkpoint: str | float | bool | dict[str, Any] | list[Any] | None


class StreamTicket(TypedDict):
    tool_results: NotRequired[bool]


class StreamTicketShown(TypedDict):
    "A token that opens the stream of one run."

    ticket: str
    expires_at: str


class StuckRun(TypedDict):
    "A run that should have moved on by now."

    run_id: str
    org_id: str
    org_name: str
    problem: Literal["queued", "worker_lost", "silent", "cancelling", "overdue"]
    since: str
    state: str
    persona_id: str
    route_id: str
    agent: str | None
    attempt: int
    crashes: int
    worker_id: str | None
    created_at: str


class StuckRuns(TypedDict):
    "Runs that should have moved on by now; at most 200."

    items: list[StuckRun]


class SuspendOrg(TypedDict):
    reason: str


class Task(TypedDict):
    tool_call_id: str
    persona: str
    task: str


class Thread(TypedDict):
    "A conversation."

    id: str
    org_id: str
    parent_run_id: str | None
    created_by_user_id: str
    title: str | None
    is_private: bool
    end_user_id: str | None
    external_id: str | None
    on_busy: Literal["reject", "enqueue", "merge", "steer", "interrupt", "rollback"]
    metadata: dict[str, str]
    active_run_id: str | None
    created_at: str
    updated_at: str


class ThreadRun(TypedDict):
    "A run in the list of its thread."

    run_id: str
    status: Literal["running", "waiting_for_input", "completed", "failed", "cancelled"]
    phase: str
    queue: QueuePlace | None
    end_user_id: str | None
    metadata: dict[str, str]
    created_at: str


class TimelineCall(TypedDict):
    "A tool call; while the model writes it, it has `arguments_text` in place of `arguments`."

    tool_call_id: str
    name: str
    arguments: NotRequired[Any]
    arguments_text: NotRequired[str]
    result: NotRequired[dict[str, Any] | None]
    progress: NotRequired[dict[str, Any]]
    sub_run: NotRequired[dict[str, Any]]


class TimelineMessage(TypedDict):
    "A message of the user."

    id: str
    org_id: str
    thread_id: str
    run_id: str | None
    created_by_user_id: str | None
    role: Literal["user", "assistant"]
    content: str | list[dict[str, Any]]
    metadata: dict[str, str]
    partial: bool
    created_at: str
    type: Literal["message"]


class TimelineRun(TypedDict):
    "A run with its turns, and the `seq` from which to continue live."

    type: Literal["run"]
    run_id: str
    status: Literal["running", "waiting_for_input", "completed", "failed", "cancelled"]
    phase: str
    queue: QueuePlace | None
    seq: int
    persona_id: str
    route_id: str
    model: str
    created_by_user_id: str
    end_user_id: str | None
    metadata: dict[str, str]
    superseded_by: str | None
    first_turn: int
    turns: list[Turn]
    pending_input: PendingInput | None
    message_id: str | None
    stop_reason: str | None
    error: RunProblem | None
    usage: RunUsage
    cost_usd: float
    created_at: str
    started_at: str | None
    ended_at: str | None


class TokenPrices(TypedDict):
    "USD per million tokens."

    input: float
    output: float
    cache_read: float
    cache_write: float


class Tokens(TypedDict):
    "An access token; the refresh token is in the cookie."

    access_token: str
    token_type: Literal["bearer"]


class Tool(TypedDict):
    name: str
    description: str
    parameters: dict[str, Any]
    idempotent: NotRequired[bool]
    timeout_seconds: NotRequired[float]


class ToolCallDeltaData(TypedDict):
    "A piece of arguments that the model is still writing; `tool.call` will have the same id."

    tool_call_id: NotRequired[str]
    name: str
    arguments_delta: str


class ToolCallDeltaEvent(TypedDict):
    seq: int
    type: Literal["tool.call.delta"]
    data: ToolCallDeltaData
    created_at: str


class ToolCallRequestedData(TypedDict):
    "A tool call; `arguments` is an object or text that was not one; a custom agent's any JSON."

    tool_call_id: NotRequired[str]
    name: str
    arguments: Any
    result_from: NotRequired[str]


class ToolCallRequestedEvent(TypedDict):
    seq: int
    type: Literal["tool.call"]
    data: ToolCallRequestedData
    created_at: str


class ToolChanges(TypedDict):
    name: NotRequired[str]
    description: NotRequired[str]
    parameters: NotRequired[dict[str, Any]]
    url: NotRequired[str]
    idempotent: NotRequired[bool]
    timeout_seconds: NotRequired[float]
    headers: NotRequired[dict[str, str] | None]


class ToolProgressData(TypedDict):
    "A report of a call in progress; `total` is what `progress` will have reached at the end."

    tool_call_id: NotRequired[str]
    progress: float
    total: NotRequired[float]
    message: NotRequired[str]


class ToolProgressEvent(TypedDict):
    seq: int
    type: Literal["tool.progress"]
    data: ToolProgressData
    created_at: str


class ToolResult(TypedDict):
    tool_call_id: str
    output: str | float | bool | dict[str, Any] | list[Any]
    is_error: NotRequired[bool]


class ToolResultData(TypedDict):
    "`output` is text, at most 64 KiB of UTF-8; longer output is cut and says so."

    tool_call_id: NotRequired[str]
    name: str
    output: NotRequired[str]
    is_error: bool
    duration_ms: int
    files: NotRequired[list[dict[str, Any]]]
    characters: NotRequired[int]


class ToolResultEvent(TypedDict):
    seq: int
    type: Literal["tool.result"]
    data: ToolResultData
    created_at: str


class Turn(TypedDict):
    "A model turn; `message_id` is null while it is not finished."

    message_id: str | None
    reasoning: str
    text: str
    tool_calls: list[TimelineCall]
    questions: list[dict[str, Any]]
    usage: Any
    output_errors: NotRequired[Any]


class Usage(TypedDict):
    "Tokens of one model call, or of many added up."

    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: NotRequired[int]
    reasoning_tokens: NotRequired[int]
    source: str


UsageReport = TypedDict(
    "UsageReport",
    {
        "runs": "int",
        "input_tokens": "int",
        "output_tokens": "int",
        "cache_read_tokens": "int",
        "cache_write_tokens": "int",
        "reasoning_tokens": "int",
        "cost_usd": "float",
        "credits": "int",
        "from": "str",
        "to": "str",
        "this_month": "MonthUsage",
    },
)


class WebhookDelivery(TypedDict):
    "A delivery, without its data."

    id: str
    endpoint_id: str
    type: str
    run_id: str | None
    seq: int | None
    state: Literal["pending", "delivered", "dead"]
    attempts: int
    response_status: int | None
    error: str | None
    tried_at: str | None
    next_attempt_at: str | None
    delivered_at: str | None
    created_at: str


class WebhookEndpoint(TypedDict):
    "A webhook endpoint, without its secret."

    id: str
    org_id: str
    url: str
    description: str
    event_types: list[str]
    enabled: bool
    disabled_reason: str | None
    failing_since: str | None
    former_secret_until: str | None
    created_at: str
    updated_at: str


class WebhookEndpointWithSecret(TypedDict):
    "A webhook endpoint with its new secret, which a repeated request is not shown."

    id: str
    org_id: str
    url: str
    description: str
    event_types: list[str]
    enabled: bool
    disabled_reason: str | None
    failing_since: str | None
    former_secret_until: str | None
    created_at: str
    updated_at: str
    signing_secret: NotRequired[str]


class WebhookEndpointsRotateSecret(TypedDict):
    overlap_seconds: NotRequired[float]


class WholeResult(TypedDict):
    "The whole output of a sub-run of which `messages` have a part; null if it is too long."

    tool_call_id: str
    output: str | None


class WholeWebhookDelivery(TypedDict):
    "A delivery with its data."

    id: str
    endpoint_id: str
    type: str
    run_id: str | None
    seq: int | None
    state: Literal["pending", "delivered", "dead"]
    attempts: int
    response_status: int | None
    error: str | None
    tried_at: str | None
    next_attempt_at: str | None
    delivered_at: str | None
    created_at: str
    data: dict[str, Any]


class Worker(TypedDict):
    "A worker process; with an `org_id` one of the org, for an agent of its own."

    id: str
    org_id: str | None
    agent: str | None
    hostname: str | None
    pid: int | None
    started_at: str
    seen_at: str
    lease_expires_at: str
    is_alive: bool
    runs: int


class WorkerCall(TypedDict):
    "A call for a tool worker, with the identity of its run."

    call_id: str
    fence: int
    tool: str
    lease_seconds: float
    timeout_seconds: float
    arguments: dict[str, Any]


class WorkerTool(TypedDict):
    "A tool that workers of a pool have registered."

    name: str
    description: str
    parameters: dict[str, Any]
    idempotent: bool
    timeout_seconds: float
    updated_at: str


class Workers(TypedDict):
    "The worker processes of the last day."

    items: list[Worker]


class WrittenRun(TypedDict):
    "A run after a write of its agent worker."

    run_id: str
    status: str
    cancel_requested: bool
    next_seq: int
