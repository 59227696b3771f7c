"""The names that the author of a provider needs; `docs/reference/providers.md` shows one."""

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.plain import clean, plain
from arkloop.shared.events.usage import Usage
from arkloop.shared.security.egress import Policy
from arkloop.worker.contract.messages import (
    AssistantMessage,
    CallDelta,
    Chunk,
    Message,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    ToolMessage,
    TurnEnd,
    UsageUpdate,
    UserMessage,
)
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers import Provider, token_counts
from arkloop.worker.providers.abortable_http import AbortableClient
from arkloop.worker.providers.output_modes import OutputMode
from arkloop.worker.providers.sdk_errors import http_errors

__all__ = [
    "AbortableClient",
    "AssistantMessage",
    "CallDelta",
    "Chunk",
    "Message",
    "ModelRequest",
    "OutputMode",
    "Policy",
    "Provider",
    "ProviderError",
    "Route",
    "StopSignal",
    "TextDelta",
    "ThinkingDelta",
    "ToolCall",
    "ToolMessage",
    "TurnEnd",
    "Usage",
    "UsageUpdate",
    "UserMessage",
    "clean",
    "http_errors",
    "plain",
    "token_counts",
]
