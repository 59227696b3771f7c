"""The spans of model calls and tool calls, by version 1.41.0 of OpenTelemetry's GenAI conventions.

A try of a model call is a span of its own, though the conventions have one for all of them: tries
go to different models and providers. What is said to models and tools, and what they say, is in
none.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from urllib.parse import urlsplit

from arkloop.shared import spans
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.errors import LeaseLost
from arkloop.shared.events.usage import Usage
from arkloop.shared.ids import span_id_of
from arkloop.shared.spans import Common, Kind, Span
from arkloop.worker.contract.identity import RunIdentity, idempotency_key
from arkloop.worker.contract.input_requests import InputRequired
from arkloop.worker.contract.messages import ModelRequest, ToolCall, TurnEnd
from arkloop.worker.contract.outcomes import ProviderError, ShuttingDown, StopRun
from arkloop.worker.tools import ResultPending, Tool, ToolFailed

#: What the conventions call providers that are reached through a platform.
_PLATFORMS: Mapping[str, str] = {
    "azure": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "vertex": "gcp.vertex_ai",
}
_SETTINGS = frozenset(("temperature", "top_p", "frequency_penalty", "presence_penalty"))


@contextmanager
def model_call(route: Route, request: ModelRequest) -> Iterator[Span]:
    """Record a try of a model call."""
    span = spans.begin(f"chat {route.model}", Kind.CLIENT)
    if span.is_recorded:
        span.common = _of_model_call(
            *(route.id, route.platform, route.provider, route.model, route.address),
            *(request.max_output_tokens, request.try_number),
        )
        for name, value in request.settings.items():
            if name in _SETTINGS and isinstance(value, int | float):
                span.attributes[f"gen_ai.request.{name}"] = value
    with span:
        try:
            yield span
        except ProviderError as error:
            span.fail(error.code)
            raise
        except (StopRun, LeaseLost) as reason:
            _stop(span, reason)
            raise


@lru_cache(1_000)
def _of_model_call(
    route_id: str,
    platform: str | None,
    provider: str,
    model: str,
    address: str | None,
    max_tokens: int | None,
    try_number: int,
) -> Common:
    host, port = _server(address)
    return (
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", _PLATFORMS.get(platform or "", provider)),
        ("gen_ai.request.model", model),
        ("gen_ai.request.stream", True),
        ("gen_ai.request.max_tokens", max_tokens),
        ("server.address", host),
        ("server.port", port),
        ("arkloop.route.id", route_id),
        ("arkloop.try", try_number),
    )


def _server(address: str | None) -> tuple[str | None, int | None]:
    try:
        url = urlsplit(address or "")
        return url.hostname, url.port or {"https": 443, "http": 80}.get(url.scheme)
    except ValueError:  # no call gets as far as this address
        return None, None


def replied(span: Span, end: TurnEnd, usage: Usage) -> None:
    """Add what is known when a model has replied."""
    if span.is_recorded:
        span.attributes.update(
            {
                "gen_ai.response.finish_reasons": (end.stop_reason,),
                "gen_ai.usage.input_tokens": usage.input_tokens,
                "gen_ai.usage.output_tokens": usage.output_tokens,
                "gen_ai.usage.cache_read.input_tokens": usage.cache_read_tokens or None,
                "gen_ai.usage.cache_creation.input_tokens": usage.cache_write_tokens or None,
                "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens or None,
            }
        )


@contextmanager
def tool_call(run: RunIdentity, call: ToolCall, tool: Tool) -> Iterator[Span]:
    """Record a call of a tool, under the id that its `traceparent` tells the tool."""
    span = spans.begin(
        f"execute_tool {call.name}",
        Kind.INTERNAL,
        attributes={
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": call.name,
            "gen_ai.tool.call.id": call.id,
            "gen_ai.tool.type": "function",
            "arkloop.result_from": tool.result_from,
        },
    )
    if span.is_recorded:
        span.span_id = span_id_of(idempotency_key(run.run_id, call.id))
    with span:
        try:
            yield span
        except (ResultPending, InputRequired):
            # The call continues elsewhere, maybe for days: what it takes here is all there is.
            span.set({"arkloop.pending": True})
            span.end()
            raise
        except ToolFailed:
            span.fail("tool_error")
            raise
        except (StopRun, LeaseLost) as reason:
            _stop(span, reason)
            raise


def _stop(span: Span, reason: BaseException) -> None:
    """End a span whose attempt ends, which is no failure of the call."""
    if isinstance(reason, ShuttingDown | LeaseLost):
        span.drop()  # the next attempt makes the call again
    span.set({"arkloop.stopped": type(reason).__name__})
    span.end()
