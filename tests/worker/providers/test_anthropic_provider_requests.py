"""Requests to Anthropic's API: conversations, tools, limits and attachments."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from arkloop.worker import providers
from arkloop.worker.contract.attachments import Attachment, TextPart
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Message,
    ModelRequest,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from arkloop.worker.tools import load
from tests.worker.providers.anthropic_answers import finish, start, text
from tests.worker.providers.fake_vendor import REQUEST, anthropic_stream, ask, raw, route_to, vendor

TOOLS = [tool.spec for tool in load(["calculator", "current_time"]).values()]


CALL = ToolCall("toolu_1", "calculator", {"expression": "1+1"})


OTHER = ToolCall("toolu_2", "current_time", {})


def sent(*messages: Message, **fields: Any) -> dict[str, Any]:
    values = {"model": "m", "system_prompt": "Be brief.", **fields}
    with vendor(raw(anthropic_stream(start(), *text(0, "ok"), finish("end_turn")))) as fake:
        ask("anthropic", fake.url, ModelRequest(messages=messages, **values))
        assert ("POST", "/v1/v1/messages") == tuple(fake.heads[0].split()[:2])
        return fake.bodies[0]


def test_the_whole_conversation_is_sent() -> None:
    """The results of a turn in one message, right after it; whatever the user says then with it."""
    body = sent(
        UserMessage("1+1?"),
        AssistantMessage("Let me see.", (CALL, OTHER)),
        ToolMessage("toolu_1", "calculator", "2"),
        ToolMessage("toolu_2", "current_time", ""),
        UserMessage("And?"),
        AssistantMessage("2"),
        AssistantMessage("It is 2."),
        UserMessage("Thanks."),
    )

    assert [
        ("user", [{"type": "text", "text": "1+1?"}]),
        (
            "assistant",
            [
                {"type": "text", "text": "Let me see."},
                {
                    "type": "tool_use",
                    "id": "toolu_1",
                    "name": "calculator",
                    "input": {"expression": "1+1"},
                },
                {"type": "tool_use", "id": "toolu_2", "name": "current_time", "input": {}},
            ],
        ),
        (
            "user",
            [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "2"},
                {"type": "tool_result", "tool_use_id": "toolu_2"},
                {"type": "text", "text": "And?"},
            ],
        ),
        (
            "assistant",
            [{"type": "text", "text": "2"}, {"type": "text", "text": "It is 2."}],
        ),
        ("user", [{"type": "text", "text": "Thanks."}]),
    ] == [(message["role"], message["content"]) for message in body["messages"]]
    assert ("Be brief.", True, 4096) == (body["system"], body["stream"], body["max_tokens"])


def test_who_has_no_tools_may_go_on_where_others_had_some() -> None:
    """The API requires the tools of a conversation, also where none may be called."""
    conversation = [
        UserMessage("1+1?"),
        AssistantMessage("", (CALL, OTHER, ToolCall("toolu_3", "calculator", {}))),
        *(ToolMessage(f"toolu_{i}", "calculator", "2") for i in (1, 2, 3)),
        AssistantMessage("2"),
        UserMessage("Thanks."),
    ]

    body = sent(*conversation)

    assert ["calculator", "current_time"] == [tool["name"] for tool in body["tools"]]
    assert [{"type": "object"}] * 2 == [tool["input_schema"] for tool in body["tools"]]
    assert {"type": "none"} == body["tool_choice"]
    assert "cache_control" not in str(body)
    assert "tool_choice" not in sent(*conversation, tools=TOOLS)
    last = sent(*conversation, tools=TOOLS, settings={"tool_choice": "none"}, may_cache=False)
    assert len(TOOLS) == len(last["tools"])
    assert {"type": "none"} == last["tool_choice"]
    assert "cache_control" not in str(last)
    assert not {"tools", "tool_choice"} & set(sent(UserMessage("Hi"), AssistantMessage("Ho")))


def test_tools_that_are_only_defined_are_in_the_worst_case() -> None:
    """The worst case includes the prompt that the vendor adds for tools."""
    provider = providers.load(route_to("anthropic", "http://127.0.0.1:1"), faults=False)
    with_call, without = (
        provider.worst_case(
            ModelRequest(
                model="m",
                system_prompt="",
                messages=[UserMessage("Hi"), AssistantMessage("", calls)],
            )
        ).input_tokens
        for calls in ((CALL,), ())
    )
    provider.close()

    assert with_call - without > 700 + len(json.dumps(CALL.arguments))


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([UserMessage("")], [("user", 1)]),
        ([], [("user", 1)]),
        ([AssistantMessage("Hi"), UserMessage("Ho")], [("user", 1), ("assistant", 1), ("user", 1)]),
        ([UserMessage("a"), AssistantMessage(" \n"), UserMessage("b")], [("user", 2)]),
        # A run without a new message, or after one that was cancelled.
        ([UserMessage("a"), AssistantMessage("b")], [("user", 1), ("assistant", 1), ("user", 1)]),
        ([AssistantMessage("b")], [("user", 1), ("assistant", 1), ("user", 1)]),
        ([UserMessage("a"), AssistantMessage("")], [("user", 1)]),
    ],
)
def test_what_the_api_would_refuse_is_not_sent(
    messages: Sequence[Message], expected: list[tuple[str, int]]
) -> None:
    """No empty text, the user first and last, the roles by turns."""
    body = sent(*messages, system_prompt=" ")

    assert expected == [(m["role"], len(m["content"])) for m in body["messages"]]
    assert all(part["text"].strip() for m in body["messages"] for part in m["content"])
    assert "system" not in body


def test_arguments_that_were_no_object_are_shown_to_the_model() -> None:
    """The API takes objects alone; id and name are made to fit too."""
    call = ToolCall("functions.calc:0", "functions.calc", "{broken")

    body = sent(UserMessage("Hi"), AssistantMessage("", (call,)), ToolMessage(call.id, "x", "no"))

    [use], [result] = (message["content"] for message in body["messages"][1:])
    assert ({"not_an_object": "{broken"}, "functions_calc") == (use["input"], use["name"])
    assert use["id"] == result["tool_use_id"] and use["id"].replace("_", "").isalnum()


def test_who_has_tools_has_what_was_sent_cached() -> None:
    """Tools, system prompt and conversation are read again, and cheaply, in the next step."""
    cached = {"cache_control": {"type": "ephemeral"}}

    body = sent(UserMessage("Hi"), tools=TOOLS)

    assert [{"type": "text", "text": "Be brief.", **cached}] == body["system"]
    assert [False, True] == ["cache_control" in tool for tool in body["tools"]]
    assert ["expression"] == body["tools"][0]["input_schema"]["required"]
    assert [{"type": "text", "text": "Hi", **cached}] == body["messages"][-1]["content"]
    assert "cache_control" not in str(sent(UserMessage("Hi")))


def test_the_end_of_the_step_before_is_marked_too() -> None:
    """A step of more than 20 blocks would hide the cache of all before it from its own end."""
    calls = tuple(ToolCall(f"toolu_{i}", "calculator", {}) for i in range(12))
    results = [ToolMessage(call.id, "calculator", "2") for call in calls]
    before = [UserMessage("Hi"), AssistantMessage("", (CALL,)), ToolMessage(CALL.id, "x", "2")]

    def marked(*messages: Message, **settings: Any) -> list[tuple[int, int]]:
        body = sent(*messages, tools=TOOLS, settings=settings)
        assert 2 == str([body["system"], body["tools"]]).count("cache_control")
        return [
            (place, len(message["content"]) - position)
            for place, message in enumerate(body["messages"])
            for position, block in enumerate(message["content"])
            if "cache_control" in block
        ]

    step = [*before, AssistantMessage("", calls), *results]
    assert [(0, 1)] == marked(UserMessage("Hi"))
    assert [(0, 1), (2, 1)] == marked(*before)
    assert [(2, 1), (4, 1)] == marked(*step)
    extra = {"cache_control": {"type": "ephemeral"}}  # the vendor's own mark is the fourth
    assert [(4, 1)] == marked(*step, extra_body=extra)


@pytest.mark.parametrize(
    ("model", "limit", "expected"),
    [
        ("claude-haiku-4-5", 7, 7),
        ("claude-haiku-4-5", None, 64_000),
        ("claude-opus-4-5@20251101", None, 64_000),
        ("claude-sonnet-4@20250514", None, 64_000),
        ("anthropic/claude-sonnet-4.5", None, 64_000),
        ("claude-opus-4-6", None, 128_000),
        ("claude-sonnet-4-6", None, 128_000),
        ("claude-haiku-5-5", None, 128_000),
        ("anthropic/claude-fable-5.1", None, 128_000),
        ("us.anthropic.claude-opus-4-6-v1", None, 64_000),
        ("anthropic.claude-opus-4-6-v1", 100_000, 100_000),
        ("claude-4-sonnet-20250514", None, 64_000),
        ("anthropic/claude-4.5-sonnet-20250929", None, 64_000),
        ("claude-4.5-haiku", None, 64_000),
        ("claude-4-opus-20250522", None, 32_000),
        ("claude-4.1-opus", None, 32_000),
        ("claude-2.1", None, 4_096),
        ("claude-instant-1.2", None, 4_096),
        ("claude-opus-4-1-20250805", None, 32_000),
        ("claude-3-5-haiku-latest", None, 8_192),
        ("claude-3-haiku-20240307", None, 4_096),
        ("smol", None, 4_096),
    ],
)
def test_the_output_is_always_limited(model: str, limit: int | None, expected: int) -> None:
    """The output limit is the persona's or the route's, else the model's own, and so is the worst
    case.
    """
    body = sent(UserMessage("Hi"), model=model, max_output_tokens=limit)
    provider = providers.load(route_to("anthropic", "http://127.0.0.1:1"), faults=False)
    request = ModelRequest(
        model=model, system_prompt="", messages=REQUEST.messages, max_output_tokens=limit
    )

    assert expected == body["max_tokens"]
    assert expected == provider.worst_case(request).output_tokens
    provider.close()


@pytest.mark.parametrize(
    ("model", "limit", "room", "expected"),
    [
        ("claude-sonnet-4-20250514", None, 100_000, 64_000),
        ("claude-sonnet-4-20250514", None, 4_100, 4_100),
        ("claude-sonnet-4-20250514", None, -500, 1_024),
        ("claude-sonnet-4-20250514", 8_000, 4_100, 8_000),
        ("claude-opus-4-1-20250805", None, 40_000, 32_000),
        ("claude-opus-4-6", None, 100_000, 100_000),
        ("smol", None, 3_000, 3_000),
    ],
)
def test_the_models_own_limit_is_lowered_to_what_the_context_leaves(
    model: str, limit: int | None, room: int, expected: int
) -> None:
    """A limit of persona or route is not: the request was fitted for it."""
    body = sent(UserMessage("Hi"), model=model, max_output_tokens=limit, remaining_tokens=room)

    assert expected == body["max_tokens"]


PNG = Attachment(kind="image", file_id="1", name="a.png", media_type="image/png", data="AAAA")


PDF = Attachment(kind="file", file_id="2", name="a.pdf", media_type="application/pdf", data="BBBB")


PNG_BLOCK = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"},
}


def test_attachments_are_sent_as_the_api_takes_them() -> None:
    """Stored ones as data, others by their URL; images of a result stand in the result."""
    messages = sent(
        UserMessage("described", (TextPart("Look"), TextPart(" "), PNG, PDF)),
        AssistantMessage("", (CALL,)),
        ToolMessage("toolu_1", "calculator", "", (PNG,)),
        UserMessage("described", (replace(PDF, url="https://e.com/f"),)),
    )["messages"]

    pdf = {"type": "base64", "media_type": "application/pdf", "data": "BBBB"}
    assert [
        {"type": "text", "text": "Look"},
        PNG_BLOCK,
        {"type": "document", "source": pdf},
    ] == messages[0]["content"]
    result, document = messages[2]["content"]
    assert [PNG_BLOCK] == result["content"]
    assert {"type": "url", "url": "https://e.com/f"} == document["source"]
