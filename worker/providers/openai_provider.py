"""OpenAI's chat completions, and every server that speaks them, through the official SDK."""

import json
from collections.abc import Iterator
from typing import Any

import openai
from openai._streaming import ServerSentEvent, SSEDecoder

from shared.egress import Policy
from shared.events import Usage, clean
from shared.model_routes import Route
from shared.prices import VENDOR_URLS
from worker.messages import (
    AssistantMessage,
    CallDelta,
    Chunk,
    Message,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    ToolMessage,
    TurnEnd,
    UsageUpdate,
    UserMessage,
)
from worker.outcomes import ProviderError
from worker.providers import token_counts
from worker.providers.abortable_http import AbortableClient
from worker.providers.partial_calls import PartialCalls, portable_id, portable_name
from worker.providers.sdk_client import address, own_headers
from worker.providers.sdk_errors import provider_errors
from worker.stop_signal import StopSignal


def build(route: Route, *, faults: bool, egress: Policy | None) -> "OpenAIProvider":
    return OpenAIProvider(route, egress)


class _Decoder:
    def iter_bytes(self, iterator: Iterator[bytes]) -> Iterator[ServerSentEvent]:
        # The SDK takes a lone `retry:`, and any comment after an `id:`, for an event without data.
        return (event for event in SSEDecoder().iter_bytes(iterator) if event.data)


class _Client(openai.OpenAI):
    # A private method: the version is pinned, and a test sends such events.
    def _make_sse_decoder(self) -> Any:
        return _Decoder()


class OpenAIProvider:
    def __init__(self, route: Route, egress: Policy | None = None) -> None:
        base_url = address(route, VENDOR_URLS["openai"], egress)
        self._http = AbortableClient(egress)
        self._is_vendor = base_url == VENDOR_URLS["openai"]
        self._api_key = route.api_key
        self._client = _Client(
            api_key=route.api_key or "none",
            base_url=base_url,
            http_client=self._http,
            default_headers=own_headers(route, egress),
            max_retries=0,  # retries are ours, so that events and usage stay right
        )

    def stream(self, request: ModelRequest, stop: StopSignal) -> Iterator[Chunk]:
        calls = PartialCalls(request.turn)
        finish_reason: str | None = None
        usage: Usage | None = None
        has_text = is_refused = False
        with stop.aborting(self._http.abort), provider_errors(openai, self._api_key):
            with self._client.chat.completions.create(**_arguments(request, self._is_vendor)) as s:
                for chunk in s:
                    stop.check()
                    told = _usage(chunk.usage)
                    if told is not None and told not in (usage, Usage()):
                        yield UsageUpdate(told)
                        usage = told
                    usage = usage or told
                    for choice in chunk.choices or ():
                        finish_reason = choice.finish_reason or finish_reason
                        delta = choice.delta
                        if delta is None:
                            continue
                        if thinking := _thinking(delta.model_extra or {}):
                            has_text = True
                            yield ThinkingDelta(clean(thinking))
                        is_refused = is_refused or bool(delta.refusal)
                        for text in (delta.content, delta.refusal):
                            if text:
                                has_text = True
                                yield TextDelta(clean(text))
                        for piece in delta.tool_calls or ():
                            function = piece.function
                            calls.add(
                                piece.index,
                                piece.id,
                                function and function.name,
                                function and function.arguments,
                            )
                            if function and function.arguments:
                                yield CallDelta(function.arguments)
            if finish_reason is None:
                why = "The provider's stream ended before its answer did."
                raise ProviderError("connection", why)
            tool_calls = calls.whole()
            if usage == Usage() and (has_text or tool_calls):
                usage = None  # some servers fill in zeros for what they do not count
            # A refusal ends with `stop`, as an answer does.
            reason = "content_filter" if is_refused else clean(finish_reason)
            end = TurnEnd(reason, tool_calls, usage)
        yield end

    def estimate(self, request: ModelRequest, output: str) -> Usage:
        return token_counts.estimate(request, output)

    def worst_case(self, request: ModelRequest) -> Usage:
        return token_counts.worst_case(request)

    def close(self) -> None:
        self._client.close()


def _arguments(request: ModelRequest, is_vendor: bool) -> dict[str, Any]:
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
                    # The vendor refuses a schema without this word.
                    "parameters": {"properties": {}, **tool.parameters},
                },
            }
            for tool in request.tools
        ]
    if request.max_output_tokens is not None:
        # Compatible servers know the older name alone.
        name = "max_completion_tokens" if is_vendor else "max_tokens"
        arguments[name] = request.max_output_tokens
    return arguments


def _message(message: Message) -> dict[str, Any]:
    match message:
        case UserMessage(content):
            return {"role": "user", "content": content}
        case ToolMessage(tool_call_id=call_id, content=content):
            return {"role": "tool", "tool_call_id": portable_id(call_id), "content": content}
        case AssistantMessage(content, ()):
            return {"role": "assistant", "content": content}
        case AssistantMessage(content, calls):
            return {
                "role": "assistant",
                "content": content or None,
                "tool_calls": [
                    {
                        "id": portable_id(call.id),
                        "type": "function",
                        "function": {
                            "name": portable_name(call.name),
                            "arguments": json.dumps(call.arguments),
                        },
                    }
                    for call in calls
                ],
            }


def _thinking(extra: dict[str, Any]) -> str:
    """Reasoning, under either of the names that compatible servers give it."""
    found = extra.get("reasoning_content") or extra.get("reasoning")
    return found if isinstance(found, str) else ""


def _usage(told: Any) -> Usage | None:
    """Cached tokens are part of the prompt's, reasoning is part of the completion's, as with us."""
    if told is None or told.prompt_tokens is None:
        return None
    prompt, completion = told.prompt_tokens_details, told.completion_tokens_details
    return Usage(
        input_tokens=told.prompt_tokens,
        output_tokens=told.completion_tokens or 0,
        cache_read_tokens=(prompt and prompt.cached_tokens) or 0,
        cache_write_tokens=(prompt and prompt.cache_write_tokens) or 0,
        reasoning_tokens=(completion and completion.reasoning_tokens) or 0,
    )
