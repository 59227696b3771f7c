"""Routes, models, personas, MCP servers, tools and webhooks as responses show them, for
`@described`.
"""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from arkloop.api.endpoints.account_types import Limits
from arkloop.api.http.described import JsonObject, Time, UuidText


class TokenPrices(TypedDict):
    """USD per million tokens."""

    input: float
    output: float
    cache_read: float
    cache_write: float


class Route(TypedDict):
    """A model as runs name it."""

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


class LlmModel(TypedDict):
    """A model of a provider of the org; its id is a `route_id`."""

    id: UuidText
    route_id: UuidText
    org_id: UuidText
    provider_id: UuidText
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
    model_settings: JsonObject
    requests_per_minute: int | None
    tokens_per_minute: int | None
    created_at: Time
    updated_at: Time


class LlmProvider(TypedDict):
    """A provider of the org, without its credentials."""

    id: UuidText
    org_id: UuidText
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
    created_at: Time
    updated_at: Time


class ClientToolShown(TypedDict):
    """A tool that the client executes."""

    name: str
    description: str
    parameters: JsonObject
    client: Literal[True]
    idempotent: bool
    timeout_seconds: float | None


class Persona(Limits):
    """A version of a persona; one with `problems` cannot be used by this release."""

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
    model_settings: JsonObject
    max_result_tokens: int
    compaction: str
    timeout_seconds: float
    input_expires_seconds: float
    on_input_expired: str
    stream_tool_arguments: bool
    output_schema: JsonObject | None
    overrides: list[str]
    on_limit: str
    created_by_user_id: UuidText | None
    created_at: Time | None
    problems: NotRequired[dict[str, list[str]]]


class McpOAuthShown(TypedDict):
    """OAuth of an MCP server; `authorization_url` is the page where access is granted."""

    client_id: str | None
    has_client_secret: bool
    authorization_url: str | None


class McpConfig(TypedDict):
    """An MCP server, without the values of its headers."""

    id: UuidText
    org_id: UuidText
    name: str
    transport: str
    url: str | None
    command: list[str] | None
    header_names: list[str]
    oauth: McpOAuthShown | None
    tool_count: int
    tried_at: Annotated[Time | None, "Of the last discovery; null: one is due."]
    discovered_at: Time | None
    discovery_error: str | None
    created_at: Time
    updated_at: Time


class McpTool(TypedDict):
    """A tool of an MCP server."""

    name: str
    description: str
    parameters: Any
    hash: str
    is_approved: bool
    changed: bool
    is_present: bool
    is_offered: bool
    problem: str | None
    approved_at: Time | None
    seen_at: Time


class HttpTool(TypedDict):
    """An HTTP tool, without its secrets."""

    id: UuidText
    org_id: UuidText
    name: str
    description: str
    parameters: JsonObject
    url: str
    idempotent: bool
    timeout_seconds: float
    header_names: list[str]
    former_secret_until: Time | None
    created_at: Time
    updated_at: Time


class HttpToolWithSecret(HttpTool):
    """An HTTP tool with its new secret, which a repeated request is not shown."""

    signing_secret: NotRequired[str]


class WorkerTool(TypedDict):
    """A tool that workers of a pool have registered."""

    name: str
    description: str
    parameters: JsonObject
    idempotent: bool
    timeout_seconds: float
    updated_at: Time


class WebhookEndpoint(TypedDict):
    """A webhook endpoint, without its secret."""

    id: UuidText
    org_id: UuidText
    url: str
    description: str
    event_types: list[str]
    enabled: bool
    disabled_reason: str | None
    failing_since: Time | None
    former_secret_until: Time | None
    created_at: Time
    updated_at: Time


class WebhookEndpointWithSecret(WebhookEndpoint):
    """A webhook endpoint with its new secret, which a repeated request is not shown."""

    signing_secret: NotRequired[str]


class WebhookDelivery(TypedDict):
    """A delivery, without its data."""

    id: UuidText
    endpoint_id: UuidText
    type: str
    run_id: UuidText | None
    seq: int | None
    state: Literal["pending", "delivered", "dead"]
    attempts: int
    response_status: int | None
    error: str | None
    tried_at: Time | None
    next_attempt_at: Time | None
    delivered_at: Time | None
    created_at: Time


class WholeWebhookDelivery(WebhookDelivery):
    """A delivery with its data."""

    data: JsonObject


class ReplayedDeliveries(TypedDict):
    """The number of deliveries that are made again."""

    replayed: int
