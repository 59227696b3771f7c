"""The openai provider: what it sends, and what it makes of what compatible servers answer."""

import json
import socket
import struct
import threading
from dataclasses import replace
from typing import Any

import pytest

from arkloop.shared.events.types import ProviderState
from arkloop.shared.events.usage import Usage
from arkloop.worker.contract.messages import (
    AssistantMessage,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    ToolMessage,
    ToolSpec,
    TurnEnd,
    UsageUpdate,
    UserMessage,
)
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers import chat_request, openai_provider
from arkloop.worker.tools import load
from tests.worker.providers.fake_vendor import (
    REQUEST,
    Answer,
    ask,
    delta,
    openai_stream,
    raw,
    refusal,
    route_to,
    status,
    vendor,
)
from tests.worker.providers.openai_chat_stream import answered, end

USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 3,
    "total_tokens": 13,
    "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 1},
}


def usage_chunk(usage: Any = USAGE) -> dict[str, Any]:
    return delta() | {"choices": [], "usage": usage}


def test_text_thinking_and_usage_are_streamed() -> None:
    """Pieces come in order; what was cached is part of the input, reasoning of the output."""
    chunks = answered(
        delta(reasoning_content="hm"),
        delta(content="Hel"),
        delta(content="lo"),
        delta(finish="stop"),
        usage_chunk(),
    )

    usage = Usage(
        input_tokens=10,
        output_tokens=3,
        cache_read_tokens=4,
        cache_write_tokens=2,
        reasoning_tokens=1,
    )
    assert [
        ThinkingDelta("hm"),
        TextDelta("Hel"),
        TextDelta("lo"),
        UsageUpdate(usage),
        TurnEnd("stop", (), usage),
    ] == chunks


def test_the_whole_conversation_and_the_tools_are_sent() -> None:
    """System prompt first, calls with their results, schemas from the tools' signatures."""
    call = ToolCall("call_1", "calculator", {"expression": "1+1"})
    request = ModelRequest(
        model="m",
        system_prompt="Be brief.",
        messages=[
            UserMessage("1+1?"),
            AssistantMessage("", (call,)),
            ToolMessage("call_1", "calculator", "2"),
        ],
        tools=[
            load(["calculator"])["calculator"].spec,
            ToolSpec("theirs", "Of an MCP server.", {"type": "object"}),
        ],
        max_output_tokens=7,
    )
    with vendor(raw(openai_stream(delta(content="2", finish="stop")))) as fake:
        ask("openai", fake.url, request)
        [body] = fake.bodies

    assert [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "calculator", "arguments": '{"expression": "1+1"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
    ] == body["messages"]
    ours, theirs = (tool["function"]["parameters"] for tool in body["tools"])
    assert ["expression"] == ours["required"]
    assert {"type": "object", "properties": {}} == theirs, "the vendor refuses it without"
    assert (7, True, {"include_usage": True}) == (
        body["max_tokens"],
        body["stream"],
        body["stream_options"],
    )


def test_a_call_of_another_server_is_named_as_this_one_takes_it() -> None:
    """The id is the same in call and result; a name that the model made up is no reason to fail."""
    call = ToolCall("functions.calc:0" * 4, "functions.calc", {})
    request = ModelRequest(
        model="m",
        system_prompt="",
        messages=[
            UserMessage("1+1?"),
            AssistantMessage("", (call,)),
            ToolMessage(call.id, call.name, "There is no such tool."),
        ],
    )
    with vendor(raw(openai_stream(delta(content="2", finish="stop")))) as fake:
        ask("openai", fake.url, request)
        messages = fake.bodies[0]["messages"]

    [sent] = messages[1]["tool_calls"]
    assert sent["id"] == messages[2]["tool_call_id"]
    assert len(sent["id"]) <= 40
    assert "functions_calc" == sent["function"]["name"]


def test_arguments_that_were_not_json_are_sent_back_as_an_object() -> None:
    """Chat templates parse them: a string in their place would end every later call."""
    call = ToolCall("c", "calc", "{broken")
    request = ModelRequest(
        model="m",
        system_prompt="",
        messages=[UserMessage("Hi"), AssistantMessage("", (call,)), ToolMessage("c", "calc", "no")],
    )
    with vendor(raw(openai_stream(delta(content="2", finish="stop")))) as fake:
        ask("openai", fake.url, request)
        [sent] = fake.bodies[0]["messages"][1]["tool_calls"]

    assert {"not_an_object": "{broken"} == json.loads(sent["function"]["arguments"])


@pytest.mark.parametrize(
    "demand",
    [
        "The `reasoning_content` in the thinking mode must be passed back to the API.",  # DeepSeek
        "thinking is enabled but reasoning_content is missing in assistant tool call message at"
        " index 3",  # Kimi
        "preserved thinking (thinking.keep=all) requires reasoning_content on every assistant"
        " message, but assistant message at index 6 is missing reasoning_content",  # Kimi
    ],
)
def test_turns_without_reasoning_get_a_blank_where_a_server_demands_it(demand: str) -> None:
    """Turns of another model, and last turns; those that have some keep it. Once for the run."""
    call = ToolCall("c", "calc", {})
    own = ProviderState("openai", "m", {"reasoning_content": "two?"}, ())
    request = ModelRequest(
        model="m",
        system_prompt="",
        messages=[
            UserMessage("1+1?"),
            AssistantMessage("", (call,), own),
            ToolMessage("c", "calc", "2"),
            AssistantMessage("Two."),
            UserMessage("And 2+2?"),
            AssistantMessage("", (replace(call, id="d"),)),
            ToolMessage("d", "calc", "4"),
        ],
    )
    refused = status("400 Bad Request", message=demand, kind="invalid_request_error")
    done = raw(openai_stream(delta(content="4", finish="stop")))
    with vendor(refused, done, done) as fake:
        provider = openai_provider.build(route_to("openai", fake.url), faults=False, egress=None)
        for _ in range(2):
            assert list(provider.stream(request, StopSignal()))
        provider.close()
        first, *others = [
            [m.get("reasoning_content") for m in body["messages"] if m["role"] == "assistant"]
            for body in fake.bodies
        ]

    assert ["two?", None, None] == first
    assert [["two?", " ", " "]] * 2 == others


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, None),
        ({"prompt_tokens": 0, "completion_tokens": 0}, None),
        ({"prompt_tokens": None, "completion_tokens": None}, None),
        ({}, None),
        ({"prompt_tokens": 5, "completion_tokens": None}, None),
        ({"prompt_tokens": 5, "completion_tokens": 0}, None),
        (
            {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": None},
            Usage(input_tokens=5, output_tokens=1),
        ),
    ],
)
def test_usage_of_servers_that_do_not_count(usage: Any, expected: Usage | None) -> None:
    """What was not counted is not reported; zeros beside text are not counted."""
    found = end(delta(content="Hi"), delta(finish="stop"), usage_chunk(usage))

    assert expected == found.usage


def test_what_was_counted_of_the_input_is_believed() -> None:
    """A reported input count is used even if the output count is missing and must be estimated."""
    usage = usage_chunk({"prompt_tokens": 5, "completion_tokens": 0})
    calls = delta(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": "{}"}}])

    for said in (delta(content="Hi"), delta(reasoning="Hm"), calls):
        *_, told, last = answered(said, delta(finish="stop"), usage)
        assert (UsageUpdate(Usage(input_tokens=5)), None) == (told, last.usage)
    assert Usage(input_tokens=5) == end(delta(finish="stop"), usage).usage


def test_what_is_told_of_the_usage_is_passed_on_at_once() -> None:
    """Usage reported with each chunk is passed on at once, and later zeros are ignored."""
    chunks = answered(
        *(
            delta(content=text) | {"usage": {"prompt_tokens": 10, "completion_tokens": count}}
            for count, text in enumerate(("", "Hel", "lo"))
        ),
        delta(finish="stop") | {"usage": {"prompt_tokens": 10, "completion_tokens": 2}},
        usage_chunk({"prompt_tokens": 0, "completion_tokens": 0}),
    )

    told = [Usage(input_tokens=10, output_tokens=count) for count in range(3)]
    assert [
        UsageUpdate(told[0]),
        UsageUpdate(told[1]),
        TextDelta("Hel"),
        UsageUpdate(told[2]),
        TextDelta("lo"),
        TurnEnd("stop", (), told[2]),
    ] == chunks


def test_content_may_come_in_parts() -> None:
    """Mistral's thinking models tell by them what is thinking; what is no text is passed over."""
    thought = [{"type": "text", "text": "h"}, {"type": "text", "text": "m"}]
    chunks = answered(
        delta(content=[{"type": "thinking", "thinking": thought}]),
        delta(content=[{"type": "thinking", "thinking": "!"}, {"type": "text", "text": ""}]),
        delta(content=[{"type": "text", "text": "Hel"}, {"type": "image_url", "image_url": "x"}]),
        delta(content=["lo"]),
        delta(content=[], finish="stop"),
    )

    assert [
        *map(ThinkingDelta, "hm!"),
        TextDelta("Hel"),
        TextDelta("lo"),
        TurnEnd("stop"),
    ] == chunks


def test_a_refusal_is_what_the_model_says() -> None:
    """It comes beside an empty content, and ends as an answer does."""
    chunks = answered(
        delta(content="", refusal=None),
        delta(refusal="I can't help"),
        delta(refusal=" with that."),
        delta(finish="stop"),
    )

    assert [
        TextDelta("I can't help"),
        TextDelta(" with that."),
        TurnEnd("content_filter", (), None),
    ] == chunks


def test_an_empty_answer_may_be_free() -> None:
    """Zeros are believed where nothing was said."""
    zeros = {"prompt_tokens": 0, "completion_tokens": 0}

    assert Usage() == end(delta(finish="stop"), usage_chunk(zeros)).usage


@pytest.mark.parametrize(
    "oddity",
    [
        {"choices": None},
        {"choices": []},
        delta() | {"choices": [{"index": 0, "delta": None, "finish_reason": None}]},
        delta(content=None, tool_calls=None),
        delta(reasoning_content=None),
        delta(reasoning={"text": "an object"}),
        delta() | {"usage": None},
    ],
)
def test_chunks_with_nothing_in_them_are_passed_over(oddity: dict[str, Any]) -> None:
    """Chunks without content are ignored."""
    found = answered(oddity, delta(content="Hi"), oddity, delta(finish="stop"), oddity)

    assert [TextDelta("Hi"), TurnEnd("stop", (), None)] == found


@pytest.mark.parametrize("usage", [USAGE, None])
def test_a_connection_may_break_when_the_answer_is_whole(usage: Any) -> None:
    """It is not asked for again; before the finish reason it is not whole."""

    def broken(*chunks: Any) -> Answer:
        def answer(client: socket.socket) -> None:
            raw(openai_stream(*chunks, done=False))(client)
            threading.Event().wait(0.5)  # a reset throws away what has not been read
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        return answer

    with vendor(broken(delta(content="Hi"), delta(finish="stop"), usage_chunk(usage))) as fake:
        *_, said, last = (c for c in ask("openai", fake.url) if not isinstance(c, UsageUpdate))
    assert (TextDelta("Hi"), "stop", usage is None) == (said, last.stop_reason, last.usage is None)

    with pytest.raises(ProviderError) as caught, vendor(broken(delta(content="Hi"))) as fake:
        ask("openai", fake.url)
    assert "provider.connection" == caught.value.code


@pytest.mark.parametrize("late", [b"data: bye\n\n", b'data: {"error": {"message": "late"}}\n\n'])
def test_nonsense_after_a_whole_answer_is_not_a_reason_to_ask_again(late: bytes) -> None:
    """Invalid data after a complete response is ignored; before its end it is an error."""

    def answer(*chunks: Any) -> Answer:
        return raw(openai_stream(*chunks, done=False), late)

    with vendor(answer(delta(content="Hi"), delta(finish="stop"))) as fake:
        assert [TextDelta("Hi"), TurnEnd("stop", (), None)] == ask("openai", fake.url)

    with pytest.raises(ProviderError), vendor(answer(delta(content="Hi"))) as fake:
        ask("openai", fake.url)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (None, "max_completion_tokens"),
        ("https://api.openai.com/v1/", "max_completion_tokens"),
        ("https://llm.example.com/v1", "max_tokens"),
    ],
)
def test_the_vendor_is_known_by_its_address(url: str | None, name: str) -> None:
    """It refuses `max_tokens` for its newer models, and others know nothing else."""
    route = route_to("openai", url, api="chat")
    request = replace(REQUEST, max_output_tokens=7)

    body = chat_request.body(request, is_vendor=route.is_at_openai)

    assert 7 == body[name]


def test_the_last_marker_may_be_missing() -> None:
    """The finish reason is what ends an answer."""
    found = answered(delta(content="Hi"), delta(finish="length"), usage_chunk(), done=False)

    assert "length" == found[-1].stop_reason


@pytest.mark.parametrize(
    "reason", ["insufficient_system_resource", "abort", "error", "network_error"]
)
def test_a_server_that_breaks_off_has_not_answered(reason: str) -> None:
    """Its finish reason says that the stream was interrupted."""
    failure = refusal("openai", raw(openai_stream(delta(content="Hi"), delta(finish=reason))))

    assert ("provider.overloaded", True) == (failure.code, failure.retryable)
    assert reason in str(failure)
