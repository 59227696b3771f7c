"""The ids of tool calls, for vendors that accept each only once in a conversation."""

import re

from arkloop.worker.contract.messages import (
    AssistantMessage,
    Message,
    ModelRequest,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from arkloop.worker.providers import anthropic_request, responses_request
from arkloop.worker.providers.unique_call_ids import with_unique_ids

#: Three runs of a thread; the server that made the calls begins to count anew in each.
ANEW = [("call_1_1", "functions.f:0"), ("call_1_1",), ("call_1_1", "functions.f:0")]
CONVERSATION: list[Message] = [
    message
    for ids in ANEW
    for message in (
        UserMessage("Go"),
        AssistantMessage("", tuple(ToolCall(id_, "f", {}) for id_ in ids)),
        *(ToolMessage(id_, "f", f"of {id_}") for id_ in reversed(ids)),
    )
]
REQUEST = ModelRequest(model="m", system_prompt="", messages=CONVERSATION)


def ids_of(messages: list[Message]) -> tuple[list[str], list[str]]:
    """Return the ids of the calls and of the results."""
    sent = list(with_unique_ids(messages))
    calls = [call.id for m in sent if isinstance(m, AssistantMessage) for call in m.tool_calls]
    return calls, [m.tool_call_id for m in sent if isinstance(m, ToolMessage)]


def test_an_id_that_comes_again_is_another_one() -> None:
    """Each result has the id of its own call, and all are accepted by every vendor."""
    calls, results = ids_of(CONVERSATION)

    first, second, third, fourth, fifth = calls
    assert "call_1_1" == first
    assert 5 == len(set(calls))
    assert [second, first, third, fifth, fourth] == results
    assert all(re.fullmatch("[A-Za-z0-9_-]{1,40}", one) for one in calls)


def test_ids_stay_when_a_conversation_goes_on() -> None:
    """The vendor has the beginning of the next request in its cache."""
    whole = list(with_unique_ids(CONVERSATION))

    for end in range(len(whole)):
        assert whole[:end] == list(with_unique_ids(CONVERSATION[:end]))


def test_anthropic_gets_each_id_once() -> None:
    """It refuses a request in which two calls have the same id."""
    sent = anthropic_request.arguments(REQUEST)["messages"]

    blocks = [block for message in sent for block in message["content"]]
    calls = [block["id"] for block in blocks if block["type"] == "tool_use"]
    results = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
    assert ids_of(CONVERSATION) == (calls, results)


def test_the_responses_api_gets_each_id_once() -> None:
    """It refuses a request in which a call has two outputs."""
    sent = responses_request.body(REQUEST, is_vendor=False)["input"]

    calls = [item["call_id"] for item in sent if item["type"] == "function_call"]
    results = [item["call_id"] for item in sent if item["type"] == "function_call_output"]
    assert ids_of(CONVERSATION) == (calls, results)
