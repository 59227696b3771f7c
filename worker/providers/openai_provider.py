"""OpenAI's chat completions, and every server that speaks them, through the official SDK."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
from openai.types.chat import ChatCompletionChunk

from shared.events import Usage
from shared.model_routes import Route
from worker.messages import (
    AssistantMessage,
    Chunk,
    Message,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    ToolMessage,
    TurnEnd,
    UserMessage,
)
from worker.outcomes import ProviderError
from worker.providers.abortable_http import AbortableClient
from worker.stop_signal import StopSignal

CHARACTERS_PER_TOKEN = 4  # only for estimates
_MAX_MESSAGE_LENGTH = 500  # of what a provider says of its failure


def build(route: Route, *, faults: bool) -> "OpenAIProvider":
    return OpenAIProvider(route)


class OpenAIProvider:
    def __init__(self, route: Route) -> None:
        self._http = AbortableClient()
        self._compatible = route.base_url is not None
        self._client = openai.OpenAI(
            api_key=route.api_key or "none",
            base_url=route.base_url,
            http_client=self._http,
            max_retries=0,  # retries are ours, so that events and usage stay right
        )

    def stream(self, request: ModelRequest, stop: StopSignal) -> Iterator[Chunk]:
        calls: dict[int, _PartialCall] = {}
        finish_reason: str | None = None
        usage: Usage | None = None
        with stop.aborting(self._http.abort), _provider_errors():
            stream = self._client.chat.completions.create(**self._arguments(request))
            for chunk in stream:
                stop.check()
                if chunk.usage is not None:
                    usage = _usage(chunk)
                for choice in chunk.choices:
                    finish_reason = choice.finish_reason or finish_reason
                    extra = choice.delta.model_extra or {}
                    if thinking := extra.get("reasoning_content") or extra.get("reasoning"):
                        yield ThinkingDelta(str(thinking))
                    if choice.delta.content:
                        yield TextDelta(choice.delta.content)
                    for delta in choice.delta.tool_calls or ():
                        calls.setdefault(delta.index, _PartialCall()).add(delta)
        if finish_reason is None:
            raise ProviderError("connection", "The provider's stream ended before its answer did.")
        tool_calls = tuple(
            calls[index].whole(f"call_{request.turn + 1}_{index + 1}") for index in sorted(calls)
        )
        yield TurnEnd(finish_reason, tool_calls, usage)

    def estimate(self, request: ModelRequest, output: str) -> Usage:
        length = len(request.system_prompt) + sum(len(m.content) for m in request.messages)
        return Usage(
            input_tokens=-(-length // CHARACTERS_PER_TOKEN),
            output_tokens=-(-len(output) // CHARACTERS_PER_TOKEN),
            source="estimated",
        )

    def close(self) -> None:
        self._client.close()

    def _arguments(self, request: ModelRequest) -> dict[str, Any]:
        messages = [_message(message) for message in request.messages]
        if request.system_prompt:
            messages.insert(0, {"role": "system", "content": request.system_prompt})
        arguments: dict[str, Any] = {
            "model": request.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.tools:
            arguments["tools"] = [
                {
                    "type": "function",
                    "function": {
                        "name": tool.name,
                        "description": tool.description,
                        "parameters": dict(tool.parameters),
                    },
                }
                for tool in request.tools
            ]
        if request.max_output_tokens is not None:
            # Compatible servers know the older name alone.
            name = "max_tokens" if self._compatible else "max_completion_tokens"
            arguments[name] = request.max_output_tokens
        return arguments


class _PartialCall:
    """A tool call that arrives in pieces."""

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments = ""

    def add(self, delta: Any) -> None:
        self.id = delta.id or self.id
        if delta.function is not None:
            self.name += delta.function.name or ""
            self.arguments += delta.function.arguments or ""

    def whole(self, fallback_id: str) -> ToolCall:
        try:
            arguments = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = self.arguments
        return ToolCall(self.id or fallback_id, self.name, arguments)


def _message(message: Message) -> dict[str, Any]:
    match message:
        case UserMessage(content):
            return {"role": "user", "content": content}
        case ToolMessage(tool_call_id=call_id, content=content):
            return {"role": "tool", "tool_call_id": call_id, "content": content}
        case AssistantMessage(content, ()):
            return {"role": "assistant", "content": content}
        case AssistantMessage(content, calls):
            return {
                "role": "assistant",
                "content": content or None,
                "tool_calls": [
                    {
                        "id": call.id,
                        "type": "function",
                        "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
                    }
                    for call in calls
                ],
            }


def _usage(chunk: ChatCompletionChunk) -> Usage | None:
    if chunk.usage is None:
        return None
    details = chunk.usage.prompt_tokens_details
    return Usage(
        input_tokens=chunk.usage.prompt_tokens,
        output_tokens=chunk.usage.completion_tokens,
        cache_read_tokens=(details.cached_tokens if details else None) or 0,
    )


@contextlib.contextmanager
def _provider_errors() -> Iterator[None]:
    """Turn what the SDK and its HTTP client raise into `ProviderError` with its kind."""
    try:
        yield
    except openai.APITimeoutError as error:
        raise ProviderError("timeout", "The provider did not answer in time.") from error
    except openai.APIStatusError as error:
        raise _status_error(error) from error
    except openai.APIConnectionError as error:
        raise ProviderError("connection", f"The provider cannot be reached: {error}") from error
    except openai.APIError as error:
        raise ProviderError("overloaded", _short(error.message)) from error
    except httpx2.TimeoutException as error:
        raise ProviderError("timeout", "The provider fell silent.") from error
    except httpx2.HTTPError as error:
        raise ProviderError("connection", f"The provider's connection broke: {error}") from error
    except (ValueError, UnicodeError) as error:
        raise ProviderError("malformed", "The provider's stream cannot be read.") from error


def _status_error(error: openai.APIStatusError) -> ProviderError:
    message = f"The provider answered {error.status_code}: {_short(error.message)}"
    match error.status_code:
        case 429:
            return ProviderError("rate_limited", message, retry_after=_retry_after(error))
        case 401 | 403:
            return ProviderError("auth", message)
        case 408:
            return ProviderError("timeout", message)
        case status if status >= 500:
            return ProviderError("overloaded", message, retry_after=_retry_after(error))
        case _:
            return ProviderError("invalid_request", message)


def _retry_after(error: openai.APIStatusError) -> float | None:
    """Seconds, where the provider says it in seconds (RFC 9110, 10.2.3)."""
    try:
        return max(0.0, float(error.response.headers["Retry-After"]))
    except (KeyError, ValueError):
        return None


def _short(text: str) -> str:
    return text if len(text) <= _MAX_MESSAGE_LENGTH else text[:_MAX_MESSAGE_LENGTH] + "…"
