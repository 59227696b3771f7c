"""Turns with state, as tests ask each vendor for them."""

import json
from typing import Any

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.types import ProviderState
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Message,
    ModelRequest,
    ToolCall,
    ToolMessage,
    TurnEnd,
    UserMessage,
)
from tests.worker.providers.fake_vendor import (
    FakeVendor,
    anthropic_stream,
    ask,
    delta,
    openai_stream,
    raw,
    vendor,
)

CALLS = (ToolCall("a", "calculator", {"expression": "1+1"}), ToolCall("b", "current_time", {}))


def asked(*messages: Message) -> ModelRequest:
    return ModelRequest(model="m", system_prompt="", messages=[UserMessage("Hi"), *messages])


def given_back(provider: str, answer: bytes, last: bytes) -> tuple[TurnEnd, dict[str, Any]]:
    """Return the end of the turn that `answer` is, and the assistant's message as it is sent
    back.
    """
    with vendor(raw(answer), raw(last)) as fake:
        end = ask(provider, fake.url)[-1]
        assert isinstance(end, TurnEnd)
        state = ProviderState(provider, "m", end.state, end.call_states)
        turn = AssistantMessage("so: now", end.tool_calls, state)
        results = [ToolMessage(call.id, call.name, "2") for call in end.tool_calls]
        ask(provider, fake.url, asked(turn, *results))
        message: dict[str, Any] = fake.bodies[1]["messages"][1]
        return end, message


DONE = openai_stream(delta(content="2", finish="stop"))


def tool(index: int, call: ToolCall, **fields: Any) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(call.arguments)}
    return {"index": index, "id": call.id, "type": "function", "function": function, **fields}


def chat(*deltas: dict[str, Any], calls: list[dict[str, Any]] | None = None) -> bytes:
    """Build a turn that calls a tool, after these pieces."""
    called = calls if calls is not None else [tool(0, CALLS[0])]
    return openai_stream(*deltas, delta(tool_calls=called), delta(finish="tool_calls"))


ENDED = anthropic_stream(
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "2"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {}},
)


def blocks(*whole: tuple[dict[str, Any], list[dict[str, Any]]]) -> bytes:
    events: list[dict[str, Any]] = []
    for index, (block, deltas) in enumerate(whole):
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        for piece in deltas:
            events.append({"type": "content_block_delta", "index": index, "delta": piece})
        events.append({"type": "content_block_stop", "index": index})
    end = {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {}}
    return anthropic_stream(*events, end)


def thinking(text: str, signature: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    pieces = [{"type": "thinking_delta", "thinking": part} for part in text]
    pieces.append({"type": "signature_delta", "signature": signature})
    return {"type": "thinking", "thinking": "", "signature": ""}, pieces


def said(text: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return {"type": "text", "text": ""}, [{"type": "text_delta", "text": text}]


def used(call: ToolCall) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    block = {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments}
    return block, []


def route_to(fake: FakeVendor, provider: str, model: str = "m") -> Route:
    return Route(id=provider, provider=provider, model=model, base_url=fake.url, api_key="k")
