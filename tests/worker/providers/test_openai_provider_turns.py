"""The turns of chat completions, as servers with rules of their own accept them."""

import pytest

from arkloop.worker.contract.attachments import Attachment, TextPart
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Message,
    ModelRequest,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from tests.worker.providers.fake_vendor import ask, delta, openai_stream, raw, vendor

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
