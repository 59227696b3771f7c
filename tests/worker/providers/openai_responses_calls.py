"""Calls of the Responses API, and answers to them, that its tests share."""

import json
from collections.abc import Mapping
from typing import Any

from arkloop.shared.catalog.model_routes import Route
from arkloop.worker import providers
from arkloop.worker.contract.messages import (
    Chunk,
    Message,
    ModelRequest,
    ToolSpec,
    TurnEnd,
    UserMessage,
)
from arkloop.worker.contract.stop_signal import StopSignal
from tests.worker.providers.fake_vendor import REQUEST, raw, route_to, vendor
from tests.worker.providers.openai_vendor import OpenAIVendor, function_call, message, reasoning

TOOLS = (ToolSpec("calculator", "Counts.", {"type": "object"}),)
CALLS = (
    reasoning("1", "Let me see.", "Two sums."),
    message("1", "I count.", phase="commentary"),
    function_call("1", "calculator", {"expression": "1+1"}),
    reasoning("2"),
    function_call("2", "calculator", {"expression": "2+2"}),
)


def at(fake: OpenAIVendor, model: str = "gpt-6-sol", **fields: Any) -> Route:
    return route_to("openai", fake.url, model=model, api="responses", **fields)


def asked(*messages: Message, **fields: Any) -> ModelRequest:
    return ModelRequest(
        model="gpt-6-sol",
        system_prompt="Be brief.",
        messages=[UserMessage("1+1?"), *messages],
        tools=TOOLS,
        **fields,
    )


def call(route: Route, *requests: ModelRequest) -> list[list[Chunk]]:
    """Make the calls one after the other, as a run does, and return the chunks of each."""
    provider = providers.load(route, faults=False)
    try:
        return [list(provider.stream(request, StopSignal())) for request in requests]
    finally:
        provider.close()


def answered(*events: Mapping[str, Any]) -> list[Chunk]:
    stream = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    with vendor(raw(stream.encode())) as fake:
        return call(route_to("openai", fake.url, api="responses"), REQUEST)[0]


def end(*items: Mapping[str, Any], **fields: Any) -> TurnEnd:
    with OpenAIVendor(lambda _: items, **fields) as fake:
        [[*_, last]] = call(at(fake), asked())
    assert isinstance(last, TurnEnd)
    return last


def incomplete(reason: str) -> Any:
    def change(event: dict[str, Any]) -> dict[str, Any]:
        final = {
            **event["response"],
            "status": "incomplete",
            "incomplete_details": {"reason": reason},
        }
        return {"type": "response.incomplete", "response": final}

    return change
