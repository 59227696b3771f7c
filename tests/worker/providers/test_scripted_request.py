"""Texts, images and files that the scripted model reads of a request."""

import json

import pytest

from arkloop.worker.contract.attachments import TextPart
from arkloop.worker.contract.messages import Message, TextDelta, ToolMessage, UserMessage
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers.scripted_provider import ScriptedProvider
from tests.worker.recorded_run import request

NOTE = "[image 1.png: the file was deleted]"
QUESTION = UserMessage(json.dumps({"script": [{"find": "[image"}]}))


def answer_to(message: Message) -> str:
    """Return what the model says of a conversation with this message."""
    chunks = ScriptedProvider().stream(request(message, QUESTION), StopSignal())
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextDelta))


@pytest.mark.parametrize(
    "message",
    [
        UserMessage("Look at [image 1.png]", (TextPart("Look at"), TextPart(NOTE))),
        ToolMessage("call_1", "see", "A picture:", (TextPart(f"{NOTE}\nand more"),)),
        UserMessage(f"Here: {NOTE}"),
    ],
)
def test_find_reads_what_is_sent(message: Message) -> None:
    """The parts of a message are found, and of a user's not the description that they replace."""
    assert NOTE == answer_to(message)


def test_find_says_that_there_is_nothing() -> None:
    """The question itself is not searched."""
    assert "nothing" == answer_to(UserMessage("Hello"))
