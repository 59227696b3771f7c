"""OpenAI's Responses API: requests, responses, and whole runs."""

import json
from dataclasses import replace
from typing import Any

import pytest

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.usage import Usage
from arkloop.worker import providers
from arkloop.worker.contract.messages import (
    CallDelta,
    Chunk,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    TurnEnd,
    UsageUpdate,
)
from arkloop.worker.contract.outcomes import ProviderError, TooLarge
from arkloop.worker.contract.stop_signal import StopSignal
from tests.worker.providers.fake_vendor import route_to, written
from tests.worker.providers.openai_responses_calls import (
    CALLS,
    answered,
    asked,
    at,
    call,
    end,
    incomplete,
)
from tests.worker.providers.openai_vendor import (
    OpenAIVendor,
    function_call,
    message,
    reasoning,
    refusal,
)

USAGE = Usage(
    input_tokens=100,
    output_tokens=50,
    cache_read_tokens=40,
    cache_write_tokens=8,
    reasoning_tokens=30,
)


@pytest.mark.parametrize(
    ("base_url", "api", "expected"),
    [
        (None, None, "responses"),
        ("https://api.openai.com/v1/", None, "responses"),
        ("https://eu.api.openai.com/v1", None, "responses"),
        (None, "chat", "chat"),
        ("https://api.openai.com.example.org/v1", None, "chat"),
        ("https://notapi.openai.com.evil/v1", None, "chat"),
        ("http://127.0.0.1:8000/v1", None, "chat"),
        ("http://127.0.0.1:8000/v1", "responses", "responses"),
    ],
)
def test_openai_itself_is_called_by_its_responses_api(
    base_url: str | None, api: str | None, expected: str
) -> None:
    """Compatible servers get chat completions, unless the route names the other API."""
    route = Route(id="r", provider="openai", model="m", base_url=base_url, api=api)

    assert expected == route.effective_api
    assert Route(id="r", provider="anthropic", model="m").effective_api is None


def test_function_tools_of_a_reasoning_model_need_this_api() -> None:
    """The vendor refuses them on chat completions, and names this API instead."""
    with OpenAIVendor(lambda _: [message("1", "2")]) as fake:
        with pytest.raises(ProviderError, match="use /v1/responses"):
            call(replace(at(fake), api="chat"), asked())
        [[*_, last]] = call(at(fake), asked())

    assert TurnEnd("stop", (), USAGE) == last


def test_the_state_of_one_api_is_not_sent_to_the_other() -> None:
    """A server has a different mark for each of its APIs."""
    route = route_to("openai", "http://here/v1")

    assert route.server == replace(route, api="chat").server
    assert route.server != replace(route, api="responses").server


def test_everything_is_streamed() -> None:
    """Reasoning summaries, text and arguments arrive in pieces, and the usage after them."""
    with OpenAIVendor(lambda _: CALLS) as fake:
        [chunks] = call(at(fake), asked())

    *pieces, update, last = chunks
    texts = {
        kind: "".join(p.text for p in pieces if isinstance(p, kind))
        for kind in (ThinkingDelta, TextDelta, CallDelta)
    }
    assert "Let me see.\n\nTwo sums." == texts[ThinkingDelta]
    assert "I count." == texts[TextDelta]
    assert '{"expression": "1+1"}{"expression": "2+2"}' == texts[CallDelta]
    assert isinstance(last, TurnEnd)
    assert list(last.tool_calls) == [
        replace(made, arguments=json.loads(made.arguments)) for made in written(pieces)
    ]
    assert UsageUpdate(USAGE) == update
    assert ("tool_calls", USAGE) == (last.stop_reason, last.usage)
    assert (
        ToolCall("call_1", "calculator", {"expression": "1+1"}),
        ToolCall("call_2", "calculator", {"expression": "2+2"}),
    ) == last.tool_calls


def test_the_texts_of_two_messages_are_separated() -> None:
    """Newer models comment before they answer: the end of the turn has the answer alone."""
    items = [
        message("1", "I look it up.", phase="commentary"),
        message("2", "It is Rome.", phase="final_answer"),
    ]
    completed = {"type": "response.completed", "response": {"status": "completed", "output": items}}
    with OpenAIVendor(lambda _: items) as fake:
        [streamed] = call(at(fake), asked())

    for chunks in (streamed, answered(completed)):
        text = "".join(c.text for c in chunks if isinstance(c, TextDelta))
        assert "I look it up.\n\nIt is Rome." == text
        assert isinstance(chunks[-1], TurnEnd)
        assert ("stop", "It is Rome.") == (chunks[-1].stop_reason, chunks[-1].final_answer)


def test_a_refusal_is_text_and_the_reason() -> None:
    """The response counts as complete, but its stop reason is `content_filter`."""
    with OpenAIVendor(lambda _: [refusal("1", "I will not.")]) as fake:
        [chunks] = call(at(fake), asked())

    assert "I will not." == "".join(c.text for c in chunks if isinstance(c, TextDelta))
    assert TurnEnd("content_filter", (), USAGE) == chunks[-1]


@pytest.mark.parametrize(
    ("reason", "expected"), [("max_output_tokens", "length"), ("content_filter", "content_filter")]
)
def test_an_incomplete_response_says_why(reason: str, expected: str) -> None:
    """The stop reason uses the other providers' words, and the usage is kept."""
    assert TurnEnd(expected, (), USAGE) == end(reasoning("1"), end=incomplete(reason))


def broken_off(change: Any) -> tuple[list[Chunk], ProviderError]:
    """Return the chunks of a response whose last event is changed, and its failure."""
    chunks: list[Chunk] = []
    with OpenAIVendor(lambda _: [message("1", "Hi")], end=change) as fake:
        provider = providers.load(at(fake), faults=False)
        with pytest.raises(ProviderError) as caught:
            chunks.extend(provider.stream(asked(), StopSignal()))
        provider.close()
    return chunks, caught.value


def failed(**error: Any) -> Any:
    def change(event: dict[str, Any]) -> dict[str, Any]:
        final = {**event["response"], "status": "failed", "error": error}
        return {"type": "response.failed", "response": final}

    return change


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("server_error", "overloaded"),
        ("rate_limit_exceeded", "rate_limited"),
        ("invalid_prompt", "invalid_request"),
        ("insufficient_quota", "auth"),
        ("image_content_policy_violation", "invalid_request"),
        ("bio_policy", "invalid_request"),
        ("misalignment_policy_violation", "invalid_request"),
        ("data_residency_mismatch", "invalid_request"),
        (None, "overloaded"),
    ],
)
def test_a_failed_response_is_an_error_of_its_kind(code: str | None, kind: str) -> None:
    """Its text and its usage are reported before it is raised."""
    chunks, error = broken_off(failed(code=code, message="No."))

    assert [TextDelta("Hi"), UsageUpdate(USAGE)] == chunks
    assert (f"provider.{kind}", "No.") == (error.code, str(error))
    assert not error.refuses_attachments


def test_a_context_that_is_too_small_is_recognised() -> None:
    """A context overflow is recognised by the code of a failed response."""
    _, error = broken_off(failed(code="context_length_exceeded", message="No."))

    assert TooLarge() == error.too_large


def test_an_error_in_an_event_of_its_own_is_one() -> None:
    """It is raised after the text that had arrived."""
    error = {"type": "error", "code": "rate_limit_exceeded", "message": "Slow down.", "param": None}

    chunks, raised = broken_off(lambda _: error)

    assert [TextDelta("Hi")] == chunks
    assert ("provider.rate_limited", "Slow down.") == (raised.code, str(raised))


def delta_of(item: str, text: str, kind: str = "output_text") -> dict[str, Any]:
    return {"type": f"response.{kind}.delta", "item_id": item, "delta": text}


def test_a_cut_stream_is_no_answer() -> None:
    """Without a final event the response is incomplete, however much has arrived."""
    done = {"type": "response.output_item.done", "output_index": 0, "item": message("1", "Hi")}

    with pytest.raises(ProviderError) as caught:
        answered(delta_of("msg_1", "Hi"), done)

    assert "provider.connection" == caught.value.code


def test_a_server_without_numbers_is_understood() -> None:
    """llama.cpp identifies items by id only, and does not report reasoning tokens."""
    item = {"type": "message", "id": "m1", "content": []}
    usage = {"input_tokens": 38, "output_tokens": 8, "input_tokens_details": {"cached_tokens": 0}}
    final = {"status": "completed", "output": [message("m1", "Hi")], "usage": usage}

    chunks = answered(
        {"type": "response.created", "response": {}},
        {"type": "response.output_item.added", "item": item},
        delta_of("m1", "H"),
        delta_of("m1", "i"),
        {"type": "response.output_item.done", "item": {**message("m1", "Hi"), "id": "m1"}},
        {"type": "response.completed", "response": final},
    )

    told = Usage(input_tokens=38, output_tokens=8)
    assert [TextDelta("H"), TextDelta("i"), UsageUpdate(told), TurnEnd("stop", (), told)] == chunks


def test_a_server_that_sends_all_at_the_end_is_understood() -> None:
    """It may send items without pieces, or only the final response."""
    items = [
        {**reasoning("1", "Hm."), "encrypted_content": None},
        message("1", "Hi"),
        function_call("1", "f", {"a": 1}),
    ]
    completed = {"type": "response.completed", "response": {"status": "completed", "output": items}}
    done = [{"type": "response.output_item.done", "output_index": i, "item": item}
            for i, item in enumerate(items)]  # fmt: skip
    expected = [
        ThinkingDelta("Hm."),
        TextDelta("Hi"),
        TurnEnd("tool_calls", (ToolCall("call_1", "f", {"a": 1}),)),
    ]

    assert expected == answered(completed)
    assert expected == answered(*done, completed)


def test_a_call_that_was_cut_off_is_what_came_of_it() -> None:
    """Incomplete arguments are kept as the text that arrived."""
    added = {**function_call("1", "f", {}), "arguments": ""}
    final = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}

    last = answered(
        {"type": "response.output_item.added", "output_index": 0, "item": added},
        {**delta_of("fc_1", '{"a": ', "function_call_arguments"), "output_index": 0},
        {"type": "response.incomplete", "response": final},
    )[-1]

    assert TurnEnd("length", (ToolCall("call_1", "f", '{"a": '),)) == last


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.output_text.delta", "item_id": "a", "delta": 5},
        {"type": "response.output_text.delta"},
        {"type": "response.output_item.added", "item": 5},
        {"type": "response.output_item.done", "item": {"type": "message", "content": 5}},
        {"type": "response.completed", "response": None},
        {"type": "response.completed", "response": {"output": [5]}},
        {"type": "response.function_call_arguments.delta", "item_id": "a", "delta": {}},
    ],
)
def test_an_event_that_cannot_be_read_is_malformed(event: dict[str, Any]) -> None:
    """An unreadable event is a provider error like any other."""
    with pytest.raises(ProviderError) as caught:
        answered(event, {"type": "response.completed", "response": {"status": "completed"}})

    assert "provider.malformed" == caught.value.code


def test_unknown_events_are_ignored() -> None:
    """The vendor adds new types now and then."""
    completed = {"type": "response.completed", "response": {"status": "completed"}}

    assert [TurnEnd("stop")] == answered({"type": "response.shiny", "new": 1}, {}, completed)
