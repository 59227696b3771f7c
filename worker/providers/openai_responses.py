"""OpenAI's Responses API, streamed and with nothing stored at the vendor.

Current reasoning models accept function tools only here: chat completions answers 400 to them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import openai

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
from arkloop.worker.providers import (
    error_bodies,
    output_modes,
    response_items,
    responses_request,
    token_counts,
)
from arkloop.worker.providers.openai_client import Client
from arkloop.worker.providers.output_modes import OutputMode
from arkloop.worker.providers.partial_calls import MAX_CALLS, PartialCalls
from arkloop.worker.providers.reported_usage import UsageReader
from arkloop.worker.providers.response_items import CALL, GAP, Item, has_arguments
from arkloop.worker.providers.sdk_client import StateBudget, with_extra

#: Requested from a reasoning model in addition to the answer. A server may refuse either: OpenAI
#: refuses both for models that do not reason, and summaries to organizations it has not verified.
_REASONING_OPTIONS: Mapping[str, Any] = {
    "include": ["reasoning.encrypted_content"],
    "reasoning": {"summary": "auto"},
}
#: OpenAI's models that do not reason; every other name is assumed to be a reasoning model.
_NO_REASONING = re.compile(r"(ft:)?(gpt-[34]|chatgpt-|gpt-5-chat)")
#: A word in a refusal that names no parameter, and the option to drop because of it.
_REFUSED = (("encrypted", "include"), ("include", "include"), ("reasoning", "reasoning"))
_ENDS = ("response.completed", "response.incomplete", "response.failed", "error")
#: The other providers' words for the same reasons.
_STOP_REASONS = {"max_output_tokens": "length"}
#: The text that an item of a type has.
_TEXTS: Mapping[Any, type[TextDelta | ThinkingDelta]] = {
    "message": TextDelta,
    "reasoning": ThinkingDelta,
}


class ResponsesProvider:
    settings = (model_settings.NAMES | {output_modes.SETTING}) - {"seed", "stop"}

    def __init__(self, route: Route, egress: Policy | None = None) -> None:
        self._client = Client(route, egress)
        self._is_vendor = route.is_at_openai or route.platform == "azure"
        self._usage = UsageReader(route, "responses")
        reasons = not _NO_REASONING.match(route.model)
        self._options = dict(_REASONING_OPTIONS) if reasons else {}

    def output_mode(self, schema: Mapping[str, Any], *, has_tools: bool) -> OutputMode:
        if self._is_vendor:
            return OutputMode.NATIVE
        return output_modes.mode_of_others(has_tools=has_tools)

    def stream(self, request: ModelRequest, stop: StopSignal) -> Iterator[Chunk]:
        with self._client.calling(stop, request):
            response = _Response(request.turn, self._usage)
            with self._open(request) as events:
                for event in self._client.read(events, _is_last):
                    stop.check()
                    yield from response.take(event)
                    if error := response.error:
                        raise openai.APIError(
                            str(error.get("message")), events.response.request, body=error
                        )
            stop.check()  # our own abort ends the stream too
            end = response.end()
        yield end

    def estimate(self, request: ModelRequest, output: str) -> Usage:
        return token_counts.estimate(request, output)

    def worst_case(self, request: ModelRequest) -> Usage:
        return token_counts.worst_case(
            replace(request, max_output_tokens=responses_request.most_output(request))
        )

    def close(self) -> None:
        self._client.close()

    def _open(self, request: ModelRequest) -> openai.Stream[Any]:
        """Open the stream of events, each a plain JSON object.

        An option that the server refuses is dropped for the rest of the run.
        """
        while True:
            body = responses_request.body(request, is_vendor=self._is_vendor)
            body = with_extra(dict(self._options), body)
            if needed := self._options.get("include"):  # a list of `extra_body` does not replace it
                body["include"] = list(dict.fromkeys([*needed, *(body["include"] or ())]))
            try:
                return self._client.open("/responses", body)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if self._options.pop(_refused_option(error, request.settings), None) is None:
                    raise


def _refused_option(error: openai.APIStatusError, settings: Mapping[str, Any]) -> str:
    """Return the option that the refusal is about; empty if it is about something else."""
    if param := (error_bodies.object_of(error) or {}).get("param"):
        if param == "reasoning.effort" and "reasoning_effort" in settings:
            return ""
        return str(param).partition(".")[0].partition("[")[0]
    message = error_bodies.text_of(error).lower()
    return next((option for word, option in _REFUSED if word in message), "")


def _is_last(event: Any) -> bool | None:
    return event.get("type") in _ENDS or None


class _Response:
    """The response that the events of a stream add up to; `error` is what one of them reported."""

    def __init__(self, turn: int, reader: UsageReader) -> None:
        self._reader = reader
        self.error: Mapping[str, Any] | None = None
        self._turn = turn
        self._items: list[Item] = []  # in the order of the output
        self._at: dict[Any, Item] = {}  # the newest one with a number or an id
        self._final: Mapping[str, Any] | None = None
        self._usage: Usage | None = None
        self._is_refused = False
        self._streamed: set[type[Chunk]] = set()  # the kinds of text

    def take(self, event: Mapping[str, Any]) -> Iterator[Chunk]:
        """Yield what the event adds; unknown events are ignored."""
        match event.get("type"):
            case "response.output_item.added":
                yield from self._begin(self._item(event, event["item"]), event["item"])
            case "response.output_text.delta" | "response.refusal.delta" as kind:
                self._is_refused = self._is_refused or "refusal" in kind
                item = self._item(event)
                pieces = item.pieces.setdefault(event.get("content_index") or 0, [])
                pieces.append(event["delta"] or "")
                yield from self._text(TextDelta, item, event["delta"])
            case "response.output_text.done":
                yield from self._whole_text(event, event.get("text"))
            case "response.refusal.done":
                self._is_refused = True
                yield from self._whole_text(event, event.get("refusal"))
            case "response.reasoning_summary_part.added":
                if self._item(event).characters:
                    yield ThinkingDelta("\n\n")
            case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta":
                yield from self._text(ThinkingDelta, self._item(event), event["delta"])
            case "response.function_call_arguments.delta":
                item, piece = self._item(event), clean(event["delta"])
                item.kind = CALL
                item.arguments.append(piece)
                yield replace(item.call, text=piece)
            case "response.function_call_arguments.done":
                item = self._item(event)
                item.kind = CALL
                yield from _whole_arguments(item, event.get("arguments"))
            case "response.output_item.done":
                item = self._item(event, event["item"])
                item.is_done = True
                yield from self._finish(item, event["item"])
            case "response.completed" | "response.incomplete" | "response.failed":
                yield from self._end(event["type"], event["response"])
            case "error":
                self.error = event

    def end(self) -> TurnEnd:
        """Build the last chunk.

        Raises:
            ProviderError: the stream ended without a final event.
        """
        if self._final is None:
            raise ProviderError(
                "connection", "The provider's stream ended before the response was complete."
            )
        budget = StateBudget()
        calls = PartialCalls(self._turn)
        kept: list[tuple[int, dict[str, Any]]] = []
        number = 0
        is_kept, is_needed = True, False
        for item in self._items:
            match item.data.get("type"):
                case response_items.CALL:
                    data = item.data
                    arguments = "".join(item.arguments) or data.get("arguments")
                    state = (number, data.get("id"))
                    calls.add(number, data.get("call_id"), data.get("name"), arguments, state)
                    number += 1
                case "reasoning":
                    thought = _to_keep(item.data)
                    is_kept = is_kept and thought is not None and budget.take(thought)
                    is_needed = True
                    kept.append((number, thought or {}))
                case "message":
                    is_needed = is_needed or "phase" in item.data
                    kept.append((number, _without_text(item)))
        tool_calls = calls.whole()
        usage = self._usage
        if usage is not None and not usage.output_tokens and (self._streamed or tool_calls):
            usage = None  # some servers fill in zeros for what they do not count
        answer = "" if tool_calls else response_items.final_answer(self._items)
        end = TurnEnd(self._reason(bool(tool_calls)), tool_calls, usage, final_answer=answer)
        if tool_calls and is_needed and is_kept:
            end = replace(end, state=kept, call_states=calls.states())
        return end

    def _item(self, event: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> Item:
        """Find the item of an event by its number, or by its id: llama.cpp sends no numbers.

        Some servers give all items one number: after one that is done, other data begin the next.
        """
        place, item_id = event.get("output_index"), data and data.get("id")
        name = event.get("item_id", item_id)
        key = name if place is None else place
        item = self._at.get(key)
        if item is None and name and (named := self._at.get(name)) and named.key == name:
            item = self._at[key] = named  # it had no number before
        if item is not None and item.is_done and data not in (None, item.data):
            item = item if item_id and item_id == item.data.get("id") else None
        if item is None:
            if len(self._items) >= MAX_CALLS:
                raise _too_many()
            item = self._at[key] = Item(key)
            self._items.append(item)
        if data is not None and name:  # later events may have the id alone
            self._at[name] = item
        return item

    def _text(
        self, kind: type[TextDelta] | type[ThinkingDelta], item: Item, text: str
    ) -> Iterator[Chunk]:
        if text := clean(text or ""):
            item.kind = item.kind or ("message" if kind is TextDelta else "reasoning")
            if kind is TextDelta:
                item.said.append(text)
                if item.data and not item.characters and kind in self._streamed:
                    text, item.gap = GAP + text, len(GAP)
            item.characters += len(text)
            self._streamed.add(kind)
            yield kind(text)

    def _whole_text(self, event: Mapping[str, Any], text: str | None) -> Iterator[Chunk]:
        """Take the whole text of a part; yield what was not streamed of it.

        Nothing, if text was streamed that may be this part's: under an item that never began, in
        another part of the message, or with other words.
        """
        item, whole = self._item(event), text or ""
        if item.is_done:
            return
        part = event.get("content_index") or 0
        streamed = [one for one in self._items if one.pieces]
        if part in item.pieces:
            known = "".join(item.pieces[part])
            if whole.startswith(known):
                item.pieces[part] = [whole]
                yield from self._text(TextDelta, item, whole[len(known) :])
        elif not streamed or (item.data and not item.pieces and all(one.data for one in streamed)):
            yield from self._text(TextDelta, item, whole)

    def _begin(self, item: Item, data: Mapping[str, Any]) -> Iterator[Chunk]:
        item.data, item.kind = data, data.get("type")
        if item.kind == CALL:
            before = [other for other in self._items if other.call.position is not None]
            names = (clean(data.get(name) or "") for name in ("call_id", "name"))
            item.call = CallDelta("", len(before), *names)
            yield item.call

    def _finish(self, item: Item, data: Mapping[str, Any]) -> Iterator[Chunk]:
        """Complete an item; yield what of it the server did not stream in pieces."""
        item.data, item.kind = data, data.get("type")
        if item.kind == CALL:
            yield from _whole_arguments(item, data.get("arguments"))
        if item.characters:
            return
        match item.kind:
            case "message":
                for part in data.get("content") or ():
                    self._is_refused = self._is_refused or "refusal" in part
                    yield from self._text(TextDelta, item, part.get("text") or part.get("refusal"))
            case "reasoning":
                for part in data.get("summary") or data.get("content") or ():
                    yield from self._text(ThinkingDelta, item, part["text"])

    def _end(self, kind: str, final: Mapping[str, Any]) -> Iterator[Chunk]:
        self._final = final
        output = [data for data in final.get("output") or () if data is not None]
        for item, data in zip(self._items_of(output), output, strict=True):
            if item is not None:
                if item.is_done:  # the final response has what it lacks
                    known = {name: value for name, value in item.data.items() if value}
                    if not has_arguments(known.get("arguments")):
                        known.pop("arguments", None)
                    if data.get("id") != item.data.get("id"):  # encrypted for another id
                        known.setdefault("encrypted_content", None)
                    data = {**data, **known}
                yield from self._finish(item, data)
        usage = self._reader.read(final.get("usage"), final.get("service_tier"))
        if usage is not None:
            self._usage = usage
            yield UsageUpdate(usage)
        if kind == "response.failed":
            self.error = final.get("error") or {"message": "The response failed."}

    def _items_of(self, output: Sequence[Mapping[str, Any]]) -> list[Item | None]:
        """Find the items of the final response; None is one of which nothing is read.

        Where one that was streamed is not found there, an unknown one of its type may be the same.
        """
        if len(output) > MAX_CALLS:
            raise _too_many()
        found = response_items.find(self._items, output)
        lost = {one.kind for one in self._items if one not in found and not one.is_empty}
        for place, data in enumerate(output):
            kind, item = data.get("type"), found[place]
            if item is not None:
                if item.is_empty and kind in lost:
                    found[place] = None
            elif kind not in lost and _TEXTS.get(kind) not in self._streamed:
                item = found[place] = Item()
                # Calls are counted as they were streamed, the others as the response has them.
                later = () if kind == CALL else found[place + 1 :]
                places = (self._items.index(one) for one in later if one is not None)
                self._items.insert(next(places, len(self._items)), item)
        return found

    def _reason(self, has_calls: bool) -> str:
        assert self._final is not None
        if self._is_refused:
            return "content_filter"
        if self._final.get("status") == "incomplete":
            details = self._final.get("incomplete_details") or {}
            reason = clean(details.get("reason") or "max_output_tokens")
            return _STOP_REASONS.get(reason, reason)
        return "tool_calls" if has_calls else "stop"


def _too_many() -> ProviderError:
    return ProviderError("malformed", "The model's response has too many parts.")


def _whole_arguments(item: Item, arguments: str | None) -> Iterator[Chunk]:
    """Take a call's whole arguments; yield the rest if only a part of them was streamed.

    Empty ones replace nothing: a later event may have the others.
    """
    if has_arguments(whole := clean(arguments or "")):
        streamed = "".join(item.arguments)
        item.arguments = [whole]
        if item.call.position is not None and whole.startswith(streamed) and whole != streamed:
            yield replace(item.call, text=whole[len(streamed) :])


def _to_keep(item: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a reasoning item as it is sent back; None if the server could not use it.

    Nothing is stored there, so the item itself must contain the reasoning, encrypted or not.
    """
    thought = {name: item[name] for name in ("encrypted_content", "content") if item.get(name)}
    if not thought:
        return None
    named = {"id": item["id"]} if item.get("id") else {}  # OpenAI refuses an empty one
    return {"type": "reasoning", **named, "summary": item.get("summary") or [], **thought}


def _without_text(item: Item) -> dict[str, Any]:
    """Return a message item without its text: only its length, since the turn has the text."""
    named = {name: item.data[name] for name in ("id", "phase") if item.data.get(name)}
    gap = {"gap": item.gap} if item.gap else {}
    return {"type": "message", "characters": item.characters, **gap, **named}
