"""The ids of tool calls in chat completions, in the form that a model was trained on."""

import re

import pytest

from arkloop.worker.contract.messages import (
    AssistantMessage,
    Message,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from arkloop.worker.providers.chat_call_ids import with_ids_for

READ, WRITE = ToolCall("call_a", "read", {}), ToolCall("functions.write:0", "write", {})
AGAIN = ToolCall("call_a", "read", {"path": "x"})
#: The results are not in the order of the calls, and an id of an earlier run comes again.
CONVERSATION: list[Message] = [
    UserMessage("Go"),
    AssistantMessage("", (READ, WRITE)),
    ToolMessage(WRITE.id, "write", "ok"),
    ToolMessage(READ.id, "read", "text"),
    AssistantMessage("Done"),
    UserMessage("Again"),
    AssistantMessage("", (AGAIN,)),
    ToolMessage(AGAIN.id, "read", "text"),
]


def ids_of(model: str) -> tuple[list[str], list[str]]:
    """Return the ids of the calls and of the results."""
    sent = list(with_ids_for(model, CONVERSATION))
    calls = [call.id for m in sent if isinstance(m, AssistantMessage) for call in m.tool_calls]
    assert [m.content for m in CONVERSATION] == [m.content for m in sent]
    return calls, [m.tool_call_id for m in sent if isinstance(m, ToolMessage)]


@pytest.mark.parametrize("model", ["kimi-k2-thinking", "moonshotai/Kimi-K2.5"])
def test_kimi_reads_the_name_of_a_function_in_the_id(model: str) -> None:
    """The calls are numbered through the conversation, those of other models too."""
    first, second, third = "functions.read:0", "functions.write:1", "functions.read:2"

    assert ([first, second, third], [second, first, third]) == ids_of(model)


def test_ids_stay_when_a_conversation_goes_on() -> None:
    """The vendor has the beginning of the next request in its cache."""
    for model in ("kimi-k2", "mistral-large", "m"):
        whole = list(with_ids_for(model, CONVERSATION))
        assert whole[:4] == list(with_ids_for(model, CONVERSATION[:4]))


@pytest.mark.parametrize(
    "model", ["mistral-large-latest", "Mixtral-8x7B", "codestral", "devstral-small", "ministral-8b"]
)
def test_mistral_takes_nine_letters_and_digits(model: str) -> None:
    """Its own ids stay as they are."""
    calls, results = ids_of(model)

    assert all(re.fullmatch("[A-Za-z0-9]{9}", one) for one in calls)
    assert [calls[1], calls[0], calls[2]] == results
    own = AssistantMessage("", (ToolCall("Ab3dEf7hI", "read", {}),))
    assert [own] == list(with_ids_for(model, [own]))


def test_another_model_gets_the_ids_that_it_gave() -> None:
    """Kimi's models do under another name, too; what no server accepts is replaced."""
    assert (["call_a", WRITE.id, "call_a"], [WRITE.id, "call_a", "call_a"]) == ids_of("m")
    odd: list[Message] = [
        AssistantMessage("", (ToolCall("a b", "f", {}),)),
        ToolMessage("a b", "f", ""),
    ]
    turn, result = with_ids_for("m", odd)
    assert isinstance(turn, AssistantMessage) and isinstance(result, ToolMessage)
    assert turn.tool_calls[0].id == result.tool_call_id
    assert re.fullmatch("call_[0-9a-f]{32}", result.tool_call_id)
