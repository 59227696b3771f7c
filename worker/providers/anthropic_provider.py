"""Anthropic's Messages, and every server that speaks them, through the official SDK."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import anthropic

from arkloop.shared.catalog import model_settings
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.plain import clean
from arkloop.shared.events.usage import Usage
from arkloop.shared.security.egress import Policy
from arkloop.worker.contract.messages import (
    CallDelta,
    Chunk,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    TurnEnd,
    UsageUpdate,
)
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers import anthropic_client, anthropic_request, output_modes, token_counts
from arkloop.worker.providers.abortable_http import AbortableClient
from arkloop.worker.providers.output_modes import OutputMode
from arkloop.worker.providers.partial_calls import PartialCalls
from arkloop.worker.providers.reported_usage import UsageReader
from arkloop.worker.providers.sdk_client import StateBudget, address, read_to_end
from arkloop.worker.providers.sdk_errors import provider_errors

#: The same words as of the other providers, where they mean the same.
_FULL = "model_context_window_exceeded"
_STOP_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    _FULL: "length",
    "refusal": "content_filter",
}
#: The categories of refusals before any output that Anthropic does not bill; others it does again
#: since September 24, 2026.
_FREE_REFUSALS = ("cyber", "general_harms")


def build(route: Route, *, faults: bool, egress: Policy | None) -> "AnthropicProvider":
    return AnthropicProvider(route, egress)


_Delta = TypeVar("_Delta", TextDelta, ThinkingDelta)


def _is_last(event: Any) -> bool | None:
    is_refusal = event.type == "message_delta" and event.delta.stop_reason == "refusal"
    return is_refusal or event.type == "message_stop" or None


class AnthropicProvider:
    #: The API has neither seed nor verbosity.
    settings = (model_settings.NAMES - {"seed", "verbosity"}) | {output_modes.SETTING}

    def __init__(self, route: Route, egress: Policy | None = None) -> None:
        base_url = address(route, egress)
        self._http = AbortableClient.of_run(
            route,
            egress,
            frames=route.platform == "bedrock",
            credentials=anthropic_client.headers(route),
        )
        self._route = route
        self._usage = UsageReader(route, "messages")
        self._is_at_vendor = route.is_at_anthropic and route.platform is None
        self._client = anthropic_client.connect(route, base_url, self._http)

    def output_mode(self, schema: Mapping[str, Any], *, has_tools: bool) -> OutputMode:
        # Compatible servers ignore the field, so that the model would know nothing of the schema.
        is_native = self._route.is_at_anthropic and output_modes.is_of_anthropic(schema)
        return OutputMode.NATIVE if is_native else OutputMode.TOOL

    def stream(self, request: ModelRequest, stop: StopSignal) -> Iterator[Chunk]:
        answer = _Answer(request.turn, self._usage, is_at_vendor=self._is_at_vendor)
        failures = provider_errors(anthropic, self._route.api_key, request.settings)
        with stop.aborting(self._http.abort), failures:
            # Before: what is sent for a token is not reported.
            anthropic_client.authorize(self._route, self._client, self._http)
            with (
                self._http.reporting(request.on_send),
                self._client.messages.create(**anthropic_request.arguments(request)) as events,
            ):
                for event in read_to_end(events, _is_last, self._http, anthropic):
                    stop.check()
                    if chunk := answer.take(event):
                        yield chunk
            end = answer.end()
        yield end

    def estimate(self, request: ModelRequest, output: str) -> Usage:
        return token_counts.estimate(request, output)

    def worst_case(self, request: ModelRequest) -> Usage:
        sent = replace(
            request,
            tools=anthropic_request.tools_of(request),
            max_output_tokens=anthropic_request.max_tokens(request),
        )
        return token_counts.worst_case(sent, writes_cache=anthropic_request.may_cache(request))

    def close(self) -> None:
        self._client.close()


class _Answer:
    """The turn that the events of a stream add up to."""

    def __init__(self, turn: int, reader: UsageReader, *, is_at_vendor: bool) -> None:
        self._reader = reader
        self._is_at_vendor = is_at_vendor
        self._calls = PartialCalls(turn)
        self._call_indexes: set[int] = set()
        self._inputs: dict[int, str] = {}  # of calls that came whole, by the block's index
        self._reported: dict[str, Any] = {}
        self._usage = Usage()
        self._stop_reason: str | None = None
        self._is_whole = False
        self._has_text = self._has_begun = False
        self._thoughts = _Thoughts()

    def take(self, event: Any) -> Chunk | None:
        """Read an event; returns its chunk, if any, and ignores what is unknown."""
        self._is_whole = self._is_whole or bool(_is_last(event))
        match event.type:
            case "message_start":
                return self._count(event.message.usage)
            case "content_block_start":
                self._has_begun = True
                return self._begin(event.index, event.content_block)
            case "content_block_delta":
                return self._go_on(event.index, event.delta)
            case "message_delta":
                self._stop_reason = event.delta.stop_reason or self._stop_reason
                if self._is_free(event.delta):
                    self._usage = Usage()  # reported all the same, but not billed
                    return UsageUpdate(self._usage)
                return self._count(event.usage)
        return None

    def end(self) -> TurnEnd:
        """Return the end of the turn. Raises: ProviderError: the stream ended early."""
        if not self._is_whole:
            raise ProviderError(
                "connection", "The provider's stream ended before the response was complete."
            )
        for index, text in self._inputs.items():
            self._calls.add(index, None, None, text)
        calls = self._calls.whole()
        usage: Usage | None = self._usage
        if not self._usage.output_tokens and (self._has_text or calls):
            usage = None  # some servers fill in zeros for what they do not count
        reason = clean(self._stop_reason or "end_turn")
        end = TurnEnd(
            _STOP_REASONS.get(reason, reason), calls, usage, is_context_full=reason == _FULL
        )
        if calls and self._thoughts.finish():
            end = replace(end, state=self._thoughts.of_turn, call_states=self._calls.states())
        return end

    def _begin(self, index: int, block: Any) -> TextDelta | ThinkingDelta | CallDelta | None:
        match block.type:
            case "tool_use":
                self._call_indexes.add(index)
                before = self._thoughts.before_call()
                begun = self._calls.add(index, block.id, block.name, None, before or None)
                if block.input:
                    self._inputs[index] = json.dumps(block.input, ensure_ascii=False)
                return begun
            case "text":
                return self._text(TextDelta, block.text)
            case "thinking":
                self._thoughts.begin(index, block.to_dict())
                return self._text(ThinkingDelta, block.thinking)
            case "redacted_thinking":
                self._thoughts.begin(index, block.to_dict())
        return None

    def _go_on(self, index: int, delta: Any) -> TextDelta | ThinkingDelta | CallDelta | None:
        match delta.type:
            case "text_delta":
                return self._text(TextDelta, delta.text)
            case "thinking_delta":
                self._thoughts.go_on(index, delta.thinking)
                return self._text(ThinkingDelta, delta.thinking)
            case "signature_delta":
                self._thoughts.sign(index, delta.signature)
            case "input_json_delta":
                if not delta.partial_json:
                    return None  # some servers send one after a call that came whole
                if index in self._call_indexes:  # the vendor's own tools stream their input too
                    self._inputs.pop(index, None)
                    return self._calls.add(index, None, None, delta.partial_json)
                return CallDelta(delta.partial_json)
        return None

    def _text(self, kind: type[_Delta], text: str | None) -> _Delta | None:
        if not text:
            return None
        self._has_text = True
        if kind is TextDelta:
            self._thoughts.said(len(text))
        return kind(clean(text))

    def _is_free(self, end: Any) -> bool:
        """Return whether the vendor bills nothing for a turn with this end, whatever it reports."""
        if not self._is_at_vendor or self._has_begun or end.stop_reason != "refusal":
            return False
        return getattr(end.stop_details, "category", None) in _FREE_REFUSALS

    def _count(self, usage: Any) -> UsageUpdate | None:
        """Read usage figures, which are sums so far: they replace earlier ones, except zeros."""
        if usage is None:
            return None
        reported = usage.to_dict(warnings=False)
        self._reported |= {name: value for name, value in reported.items() if value}
        before = self._usage
        sums = {"input_tokens": 0, **self._reported}
        self._usage = self._reader.read(sums, sums.get("speed")) or before
        return UsageUpdate(self._usage) if self._usage != before else None


class _Thoughts:
    """The blocks of thinking, which the API requires back unchanged and in place."""

    def __init__(self) -> None:
        self._budget = StateBudget()
        self._open: dict[int, tuple[dict[str, Any], list[str]]] = {}  # the pieces of each
        self._since_call: list[dict[str, Any]] = []
        self._has_call = False
        self._layout: list[dict[str, Any] | int] = []

    @property
    def of_turn(self) -> list[dict[str, Any] | int] | None:
        """The blocks before the first call; between them how many characters of text stood there.

        None if there are no blocks.
        """
        is_thought = [isinstance(part, dict) for part in self._layout]
        return self._layout if any(is_thought) else None

    def begin(self, index: int, block: dict[str, Any]) -> None:
        if self._budget.take(block):
            self._open[index] = block, [block.get("thinking") or ""]
            (self._since_call if self._has_call else self._layout).append(block)

    def go_on(self, index: int, text: str | None) -> None:
        if text and index in self._open and self._budget.take(text):
            self._open[index][1].append(text)

    def sign(self, index: int, signature: str | None) -> None:
        if signature and index in self._open and self._budget.take(signature):
            self._open[index][0]["signature"] = signature

    def said(self, characters: int) -> None:
        """Record text; what follows a call is placed before it when it is sent back."""
        if self._has_call:
            return
        last = self._layout[-1] if self._layout else None
        if isinstance(last, int):
            self._layout[-1] = last + characters
        else:
            self._layout.append(characters)

    def before_call(self) -> list[dict[str, Any]]:
        """Begin a call; returns the blocks between it and the last one."""
        self._has_call, blocks, self._since_call = True, self._since_call, []
        return blocks

    def finish(self) -> bool:
        """Put the pieces together; False where they are too long to be kept."""
        for block, pieces in self._open.values():
            if block["type"] == "thinking":
                block["thinking"] = "".join(pieces)
        return not self._budget.is_over
