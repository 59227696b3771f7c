"""The turns of chat completions, as servers with rules of their own accept them."""

from dataclasses import replace

import pytest

from arkloop.shared.events.types import ProviderState
from arkloop.worker.contract.attachments import Attachment, TextPart
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Message,
    ModelRequest,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers import openai_provider
from tests.worker.providers.fake_vendor import (
    ask,
    delta,
    openai_stream,
    raw,
    route_to,
    status,
    vendor,
)

CALL = ToolCall("c", "camera", {})
PNG = Attachment(kind="image", file_id="1", name="a.png", media_type="image/png", data="AAAA")


@pytest.mark.parametrize(
    ("messages", "roles"),
    [
        ([UserMessage("1+1?"), UserMessage("2+2?")], ["user"]),
        ([UserMessage("Look"), UserMessage("a.png", (TextPart("this:"), PNG))], ["user"]),
        (
            [
                UserMessage("Look"),
                AssistantMessage("", (CALL,)),
                ToolMessage("c", "camera", "one", (PNG,)),
                UserMessage("Hurry"),
            ],
            ["user", "assistant", "tool", "user"],
        ),
    ],
    ids=["after a failed run", "with an image", "after the images of a tool"],
)
def test_roles_alternate(messages: list[Message], roles: list[str]) -> None:
    """A chat template that demands it does not end the thread after a run without an answer."""
    request = ModelRequest(model="gemma-3", system_prompt="", messages=messages)
    with vendor(raw(openai_stream(delta(content="4", finish="stop")))) as fake:
        ask("openai", fake.url, request)
        [body] = fake.bodies

    assert roles == [message["role"] for message in body["messages"]]


def test_calls_without_a_signature_get_googles_word_for_it() -> None:
    """Turns of another model, the first call of each; signed ones keep theirs. Once for the run."""
    signed = {"google": {"thought_signature": "c2ln"}}
    own = ProviderState("openai", "m", None, (signed, None))
    calls = (CALL, replace(CALL, id="d"))
    request = ModelRequest(
        model="m",
        system_prompt="",
        messages=[
            UserMessage("Look"),
            *(AssistantMessage("", calls, own), *(ToolMessage(c.id, "camera", "a") for c in calls)),
            *(AssistantMessage("", calls), *(ToolMessage(c.id, "camera", "b") for c in calls)),
            AssistantMessage("A cat."),
            UserMessage("And now?"),
        ],
    )
    demand = (
        "Function call is missing a thought_signature in functionCall parts. This is required for"
        " tools to work correctly, and missing thought_signature may lead to degraded model"
        " performance. Additional data, function call `default_api:camera` , position 2."
    )
    refused = status("400 Bad Request", message=demand, kind="INVALID_ARGUMENT")
    done = raw(openai_stream(delta(content="4", finish="stop")))
    with vendor(refused, done, done) as fake:
        provider = openai_provider.build(route_to("openai", fake.url), faults=False, egress=None)
        for _ in range(2):
            assert list(provider.stream(request, StopSignal()))
        provider.close()
        first, *others = [
            [
                call.get("extra_content")
                for m in body["messages"]
                for call in m.get("tool_calls", ())
            ]
            for body in fake.bodies
        ]

    skipped = {"google": {"thought_signature": "skip_thought_signature_validator"}}
    assert [signed, None, None, None] == first
    assert [[signed, None, skipped, None]] * 2 == others
