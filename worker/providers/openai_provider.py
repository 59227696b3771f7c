"""OpenAI's chat completions, and every server that speaks them, through the official SDK."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import openai

from arkloop.shared.catalog import model_settings
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.plain import clean
from arkloop.shared.events.usage import Usage
from arkloop.shared.security.egress import Policy
from arkloop.worker.contract.messages import (
    Chunk,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    TurnEnd,
    UsageUpdate,
)
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers import chat_request, output_modes, token_counts
from arkloop.worker.providers.chat_call_ids import with_ids_for
from arkloop.worker.providers.chat_demands import Demands
from arkloop.worker.providers.chat_request import SIGNED
from arkloop.worker.providers.google_thoughts import Thoughts
from arkloop.worker.providers.openai_client import Client
from arkloop.worker.providers.openai_responses import ResponsesProvider
from arkloop.worker.providers.output_modes import OutputMode
from arkloop.worker.providers.partial_calls import PartialCalls
from arkloop.worker.providers.reported_usage import UsageReader
from arkloop.worker.providers.sdk_client import StateBudget

_PATH = "/chat/completions"
#: The names that compatible servers give to the model's reasoning.
_REASONING = ("reasoning_content", "reasoning")
#: What a chunk may add to the response.
_ADDED = ("content", "refusal", "tool_calls", *_REASONING)
#: OpenRouter's, with the signatures that Anthropic's and Google's models want back.
_DETAILS = "reasoning_details"
#: The finish reasons of a server that broke off: DeepSeek's, that of SGLang and vLLM, that of
#: Mistral and OpenRouter, and z.ai's.
_INTERRUPTED = ("insufficient_system_resource", "abort", "error", "network_error")
#: How those of Gemini begin, in lower case, after a call that cannot be read, or of no such tool;
#: the last two are what LiteLLM makes of them.
_BAD_CALL = ("function_call_filter", "malformed_function_call", "unexpected_tool_call")
#: The reasons that the model's context is full, in lower case: z.ai's, and Mistral's.
_FULL = ("model_context_window_exceeded", "model_length")
#: The other providers' words for the same reasons; Gemini's have its own reason after a colon.
_STOP_REASONS = {
    **dict.fromkeys(_FULL, "length"),
    "content_filter": "content_filter",
    "sensitive": "content_filter",  # z.ai
}


def build(
    route: Route, *, faults: bool, egress: Policy | None
) -> "OpenAIProvider | ResponsesProvider":
    if route.effective_api == "responses":
        return ResponsesProvider(route, egress)
    return OpenAIProvider(route, egress)


class OpenAIProvider:
    """Chat completions; see `openai_responses.py` for OpenAI's newer API."""

    settings = model_settings.NAMES | {output_modes.SETTING}

    def __init__(self, route: Route, egress: Policy | None = None) -> None:
        self._client = Client(route, egress)
        self._is_vendor = route.is_at_openai or route.platform == "azure"
        self._usage = UsageReader(route, "chat")
        self._demands = Demands()

    def output_mode(self, schema: Mapping[str, Any], *, has_tools: bool) -> OutputMode:
        if self._is_vendor:
            return OutputMode.NATIVE
        return output_modes.mode_of_others(has_tools=has_tools)

    def stream(self, request: ModelRequest, stop: StopSignal) -> Iterator[Chunk]:
        calls = PartialCalls(request.turn)
        finish_reason: str | None = None
        usage: Usage | None = None
        speed = ""
        has_text = is_refused = False
        budget = StateBudget()
        reasoning, thoughts = _Reasoning(budget), Thoughts()
        with self._client.calling(stop, request):
            with self._open(request) as s:
                for chunk in self._client.read(s, _Ends()):
                    stop.check()
                    served = chunk.get("service_tier") or speed
                    if served != speed and isinstance(served, str):
                        speed = served
                        yield UsageUpdate(replace(usage or Usage(), speed=speed))
                    told = self._usage.read(_reported(chunk), speed)
                    if told is not None and told not in (usage, Usage()):
                        yield UsageUpdate(told)
                        usage = told
                    usage = usage or told
                    for choice in chunk.get("choices") or ():
                        finish_reason = choice.get("finish_reason") or finish_reason
                        delta = choice.get("delta")
                        if delta is None:
                            continue
                        reasoning.add(delta)
                        flagged, content = thoughts.split(delta)
                        if thinking := _thinking(delta) or flagged:
                            has_text = True
                            yield ThinkingDelta(clean(thinking))
                        refusal = delta.get("refusal")
                        is_refused = is_refused or bool(refusal)
                        for part in _parts(content, refusal):
                            has_text = True
                            yield part
                        for piece in delta.get("tool_calls") or ():
                            function = piece.get("function") or {}
                            signed = piece.get(SIGNED)
                            yield calls.add(
                                piece.get("index"),
                                piece.get("id"),
                                function.get("name"),
                                _text_of(function.get("arguments")),
                                signed if signed and budget.take(signed) else None,
                            )
            stop.check()  # it may have been cut by us
            if finish_reason is None:
                why = "The provider's stream ended before the response was complete."
                raise ProviderError("connection", why)
            if finish_reason in _INTERRUPTED:
                why = f"The provider broke off its response: {finish_reason}."
                raise ProviderError("overloaded", why)
            if finish_reason.lower().startswith(_BAD_CALL):
                why = f"The provider refused the model's tool call: {finish_reason}."
                raise ProviderError("malformed", why)
            if answer := thoughts.rest():
                has_text = True
                yield TextDelta(clean(answer))
            tool_calls = calls.whole()
            if usage is not None and not usage.output_tokens and (has_text or tool_calls):
                usage = None  # some servers fill in zeros for what they do not count
            # A refusal ends with `stop`, as an answer does.
            reason = "content_filter" if is_refused else _stop_reason(finish_reason)
            end = TurnEnd(reason, tool_calls, usage, is_context_full=finish_reason.lower() in _FULL)
            if tool_calls and not budget.is_over:
                end = replace(end, state=reasoning.fields(), call_states=calls.states())
        yield end

    def estimate(self, request: ModelRequest, output: str) -> Usage:
        return token_counts.estimate(request, output)

    def worst_case(self, request: ModelRequest) -> Usage:
        sent = replace(request, messages=list(with_ids_for(request.model, request.messages)))
        return token_counts.worst_case(sent)

    def close(self) -> None:
        self._client.close()

    def _open(self, request: ModelRequest) -> Any:
        """Open the stream of chunks; the body meets what the server has demanded until now."""
        body = chat_request.body(request, is_vendor=self._is_vendor)
        while True:
            sent = self._demands.meet(body)
            try:
                return self._client.open(_PATH, sent)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if not self._demands.learn(error, sent, request.settings):
                    raise


class _Ends:
    """Recognises the last chunk of a stream; for `read_to_end`.

    Not by its finish reason alone: servers in front of Gemini and Ollama set one on every chunk.
    The first one counts from those that have left it out before, until more comes after it. On a
    chunk that adds something, they must have left it out on a piece of the same field.
    """

    def __init__(self) -> None:
        self._has_open = False  # a chunk without a finish reason has come
        self._open: set[str] = set()  # the fields of which such chunks had a piece
        self._is_finished = self._is_untrue = False

    def __call__(self, chunk: Any) -> bool | None:
        choices, finishes = chunk.get("choices") or (), False
        added: set[str] = set()
        for choice in choices:
            finishes = finishes or bool(choice.get("finish_reason"))
            delta = choice.get("delta") or {}
            added.update(name for name in _ADDED if delta.get(name))
        is_first = not self._is_finished
        self._is_untrue |= bool(added) and self._is_finished
        self._is_finished |= finishes
        if choices and not finishes:
            self._has_open = True
            self._open |= added
        is_known = bool(added & self._open) if added else is_first and self._has_open
        if finishes and is_known and not self._is_untrue:
            return True
        if added:
            return False
        return True if not choices and chunk.get("usage") and self._is_finished else None


def _parts(content: Any, refusal: str | None) -> Iterator[TextDelta | ThinkingDelta]:
    """Yield text and reasoning; Mistral's thinking models send lists where others send text."""
    for part in [*(content if isinstance(content, list) else [content]), refusal]:
        if not isinstance(part, dict):
            if part:
                yield TextDelta(clean(part))
            continue
        kind = part.get("type")
        if kind == "text":
            yield from _parts(part["text"], None)
        elif kind == "thinking":
            said = _parts(part["thinking"], None)
            yield from (ThinkingDelta(piece.text) for piece in said)


def _stop_reason(finish_reason: str) -> str:
    return _STOP_REASONS.get(finish_reason.lower().partition(":")[0], clean(finish_reason))


def _text_of(arguments: Any) -> str | None:
    """Return the text of a call's arguments; some servers send the object itself."""
    return json.dumps(arguments) if isinstance(arguments, dict) else arguments


class _Reasoning:
    """The fields of a turn with calls that thinking models want back, on servers that have them."""

    def __init__(self, budget: StateBudget) -> None:
        self._budget = budget
        self._texts: dict[str, list[str]] = {}
        self._details: list[dict[str, Any]] = []

    def add(self, extra: dict[str, Any]) -> None:
        """Add the reasoning that a piece contains."""
        for name in _REASONING:
            text = extra.get(name)
            # Also where it is empty: DeepSeek refuses a turn with calls without the field.
            if isinstance(text, str) and self._budget.take(text):
                self._texts.setdefault(name, []).append(text)
        details = extra.get(_DETAILS)
        for detail in details if isinstance(details, list) else ():
            if isinstance(detail, dict):
                self._add_detail(detail)

    def _add_detail(self, piece: dict[str, Any]) -> None:
        """Add a detail; OpenRouter streams a block in pieces, unless it is encrypted."""
        last = self._details[-1] if self._details else {}
        is_text = any(name in piece for name in ("text", "summary", "signature"))
        if not is_text or any(last.get(name) != piece.get(name) for name in ("type", "index")):
            if self._budget.take(piece):
                self._details.append(dict(piece))
            return
        for name, value in piece.items():
            if name in ("text", "summary") and isinstance(value, str):
                if self._budget.take(value):
                    last[name] = (last.get(name) or "") + value
            elif value is not None and value != last.get(name) and self._budget.take(value):
                last[name] = value

    def fields(self) -> dict[str, Any] | None:
        fields: dict[str, Any] = {name: "".join(texts) for name, texts in self._texts.items()}
        if self._details:
            fields[_DETAILS] = self._details
        return fields or None


def _thinking(extra: dict[str, Any]) -> str:
    """Return the reasoning, under either of the names that compatible servers give it."""
    found = (extra.get(name) for name in _REASONING)
    return next((text for text in found if text and isinstance(text, str)), "")


def _reported(chunk: Any) -> Any:
    """Return the usage in a chunk; Kimi puts it into the last choice."""
    usage = chunk.get("usage")
    for choice in chunk.get("choices") or ():
        usage = usage or choice.get("usage")
    return usage
