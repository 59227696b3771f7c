"""Pages of the AI SDK that execute calls as soon as they are shown them, as assistant-ui does."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.test_ai_sdk import CALCULATE, CLIENTS, LOCATE, new_id, without_part_ids
from tests.ai_sdk_chat import Chat, needs_front_ends, open_chat
from tests.caller import Caller, script
from tests.tool_receiver import Received, Reply, ToolReceiver
from tests.waiting import eventually

pytestmark = needs_front_ends

TOOL = {"tool": "get_location"}
ASK = {"tool": "ask_user", "args": {"question": "Which?"}}
ROME = {"city": "Rome"}


@pytest.fixture(scope="module")
def eager(user: Caller) -> str:
    """A persona that requires approval of the calculator, and has two client tools."""
    fields: dict[str, Any] = {"tools": ["calculator", "ask_user"]}
    guarded = {**LOCATE, "name": "guarded"}
    fields |= {"client_tools": [LOCATE, guarded], "require_approval": ["calculator", "guarded"]}
    return str(user.made("/v1/personas", {"key": "eager-page", **fields})["id"])


@pytest.fixture(params=CLIENTS[1:])
def chat(request: Any, user: Caller, eager: str) -> Iterator[Chat]:
    ai, version = request.param
    setup = {"version": version, "automatic": True, "body": {"persona_id": eager}}
    with open_chat(user, new_id(), ai, **setup) as page:
        yield page


@pytest.fixture(scope="module")
def hurried(user: Caller) -> Iterator[str]:
    """A persona with a client tool, and with a tool of the org that takes a second."""

    def slowly(_: Received) -> Reply:
        threading.Event().wait(1.0)
        return Reply({"output": "found"})

    with ToolReceiver(slowly) as receiver:
        given = {"name": "find_slowly", "description": "Find it.", "url": receiver.url}
        user.made("/v1/tools", {**given, "parameters": {"type": "object"}})
        fields: dict[str, Any] = {"client_tools": [LOCATE]}
        fields["tools"] = [given["name"], "calculator", "ask_user"]
        fields["require_approval"] = ["calculator"]
        yield str(user.made("/v1/personas", {"key": "hurried-page", **fields})["id"])


def give(chat: Chat, call: dict[str, Any], output: Any) -> None:
    chat.do("output", toolCallId=call["toolCallId"], output=output)


def approve(chat: Chat, tool: str = "calculator", *, approved: bool = True) -> None:
    chat.do("approve", id=chat.call(tool)["approval"]["id"], approved=approved)


def calls_of(chat: Chat, tool: str) -> list[dict[str, Any]]:
    return [part for part in chat.answer["parts"] if part["type"] == f"tool-{tool}"]


def shown(call: dict[str, Any]) -> tuple[Any, ...]:
    return call["state"], call.get("output", call.get("errorText"))


@pytest.mark.parametrize("approved", [True, False])
def test_an_output_that_comes_with_an_approval_counts(chat: Chat, approved: bool) -> None:
    """The page keeps it, is not asked for it again, and shows the same after a reload."""
    chat.do("send", text=script({"tools": [CALCULATE, TOOL]}, {"say": "Done."}))
    give(chat, chat.call("get_location"), ROME)
    approve(chat, approved=approved)

    assert ("ready", None, "Done.") == (*chat.status, chat.text)
    assert ("output-available", ROME) == shown(chat.call("get_location"))
    state = "output-available" if approved else "output-denied"
    assert state == chat.call("calculator")["state"]
    assert ([], 2) == (chat.said["toolCalls"], chat.said["posts"])
    assert not chat.call("get_location")["providerExecuted"]
    if approved:
        live = chat.messages
        assert live == without_part_ids(chat.do("load").messages, live)
    assert ("output-available", ROME) == shown(chat.do("load").call("get_location"))


def test_an_output_that_comes_with_an_answer_counts(chat: Chat) -> None:
    """The run asks its user first, and waits for nothing after that."""
    chat.do("send", text=script({"tools": [TOOL, ASK]}, {"say": "Done."}))
    give(chat, chat.call("get_location"), "12")
    give(chat, chat.call("ask_user"), "b")

    assert ("ready", None, "Done.") == (*chat.status, chat.text)
    assert ("output-available", "12") == shown(chat.call("get_location"))
    assert ["ask_user"] == [call["toolName"] for call in chat.said["toolCalls"]]
    live = chat.messages
    assert live == without_part_ids(chat.do("load").messages, live)


def test_an_error_that_comes_with_an_approval_counts(chat: Chat) -> None:
    """The model reads why the page has no output."""
    chat.do("send", text=script({"tools": [CALCULATE, TOOL]}, {"say": "Done."}))
    failed = {"state": "output-error", "errorText": "No signal."}
    chat.do("output", toolCallId=chat.call("get_location")["toolCallId"], **failed)
    approve(chat)

    assert ("ready", None, "Done.") == (*chat.status, chat.text)
    assert ("output-error", "No signal.") == shown(chat.call("get_location"))
    assert [] == chat.said["toolCalls"]
    live = chat.messages
    assert live == without_part_ids(chat.do("load").messages, live)


def test_the_page_is_asked_for_the_outputs_that_did_not_come_with_the_approval(chat: Chat) -> None:
    """It keeps the other one, which it has given already."""
    chat.do("send", text=script({"tools": [CALCULATE, TOOL, TOOL]}, {"say": "Done."}))
    given, lacking = calls_of(chat, "get_location")
    give(chat, given, ROME)
    approve(chat)
    assert [lacking["toolCallId"]] == [call["toolCallId"] for call in chat.said["toolCalls"]]
    assert ("output-available", ROME) == shown(calls_of(chat, "get_location")[0])
    give(chat, lacking, "Oslo")

    assert ("ready", None, "Done.") == (*chat.status, chat.text)
    live = chat.messages
    assert [ROME, "Oslo"] == [call["output"] for call in calls_of(chat, "get_location")]
    assert live == without_part_ids(chat.do("load").messages, live)


def test_an_output_of_a_call_that_has_to_be_approved_counts_if_it_is(chat: Chat) -> None:
    """The page cannot know that a person is asked about its own call after another one."""
    chat.do("send", text=script({"tools": [CALCULATE, {"tool": "guarded"}]}, {"say": "Done."}))
    give(chat, chat.call("guarded"), ROME)
    approve(chat)
    asked = chat.call("guarded")
    assert ("approval-requested", {}) == (asked["state"], asked.get("input"))
    approve(chat, "guarded")

    assert ("ready", None, "Done.") == (*chat.status, chat.text)
    assert ("output-available", ROME) == shown(chat.call("guarded"))
    assert [] == chat.said["toolCalls"]


def test_an_output_for_a_tool_of_the_service_is_ignored(chat: Chat) -> None:
    """The service makes the call itself, once that is approved."""
    chat.do("send", text=script({"tools": [CALCULATE, CALCULATE]}, {"say": "Done."}))
    first, second = calls_of(chat, "calculator")
    give(chat, second, "43")
    chat.do("approve", id=first["approval"]["id"], approved=True)
    second = calls_of(chat, "calculator")[1]
    chat.do("approve", id=second["approval"]["id"], approved=True)

    assert ("ready", None, "Done.") == (*chat.status, chat.text)
    assert ["42", "42"] == [call["output"] for call in calls_of(chat, "calculator")]


def test_a_page_that_resumes_is_shown_the_output(user: Caller, eager: str) -> None:
    """The answer is still written where another page connects to it, or the same one again."""
    chat_id = new_id()
    setup: dict[str, Any] = {"version": "7.0.173", "body": {"persona_id": eager}}
    slowly = {"say": "x ", "repeat": 80, "delay_ms": 25}
    with (
        open_chat(user, chat_id, **setup) as first,
        open_chat(user, chat_id, **setup) as second,
    ):
        first.do("send", text=script({"tools": [CALCULATE, TOOL]}, slowly, {"say": "end"}))
        give(first, first.call("get_location"), ROME)
        approve(first)
        first.do("submitting").do("until", text="x x")
        second.do("load").do("resume")
        first.do("settle")

        assert ("ready", None) == second.status == first.status
        assert ("output-available", ROME) == shown(second.call("get_location"))
        assert [] == second.said["toolCalls"] == first.said["toolCalls"]
        assert first.answer == second.answer == second.do("load").answer


def test_a_page_of_ai_5_that_resumes_is_shown_the_output(user: Caller, eager: str) -> None:
    """It is not asked for the approval, which another page has given, with the output."""
    chat_id, body = new_id(), {"persona_id": eager}
    slowly = {"say": "x ", "repeat": 80, "delay_ms": 25}
    with (
        open_chat(user, chat_id, version="7.0.173", body=body) as first,
        open_chat(user, chat_id, "ai5", version="5", body=body) as second,
    ):
        first.do("send", text=script({"tools": [CALCULATE, TOOL]}, slowly, {"say": "end"}))
        give(first, first.call("get_location"), ROME)
        approve(first)
        first.do("submitting").do("until", text="x x")
        second.do("load").do("resume")

        resumed = second.call("get_location")
        assert ("output-available", ROME) == shown(resumed)
        assert resumed == second.do("load").call("get_location")


@pytest.mark.parametrize("call", [TOOL, ASK])
@pytest.mark.parametrize(("ai", "version"), CLIENTS)
def test_an_output_beside_a_slower_tool_of_the_service_counts(
    user: Caller, hurried: str, ai: str, version: str | None, call: dict[str, Any]
) -> None:
    """The page executes its call once, and has the output until the run waits for it."""
    setup: dict[str, Any] = {"eager": {call["tool"]: ROME}, "body": {"persona_id": hurried}}
    with open_chat(user, new_id(), ai, version=version, automatic=True, **setup) as chat:
        turn = {"tools": [{"tool": "find_slowly"}, call]}
        chat.do("send", text=script(turn, {"say": "Done."}))

        assert ("ready", None, "Done.") == (*chat.status, chat.text)
        assert ("output-available", ROME) == shown(chat.call(call["tool"]))
        assert "found" == chat.call("find_slowly")["output"]
        live = chat.messages
        assert live == without_part_ids(chat.do("load").messages, live)


@pytest.mark.parametrize(("ai", "version"), CLIENTS[1:])
def test_an_output_counts_that_comes_while_an_approved_call_is_made(
    user: Caller, hurried: str, ai: str, version: str | None
) -> None:
    """The person approves before the page, which takes its time, has the output."""
    setup: dict[str, Any] = {"eager": {"get_location": ROME}, "eagerDelay": 500}
    setup |= {"automatic": True, "body": {"persona_id": hurried}}
    with open_chat(user, new_id(), ai, version=version, **setup) as chat:
        turn = {"tools": [CALCULATE, {"tool": "find_slowly"}, TOOL]}
        chat.do("send", text=script(turn, {"say": "Done."}))
        approve(chat)

        eventually(lambda: chat.do("state").text == "Done.")
        assert ("output-available", ROME) == shown(chat.call("get_location"))
        live = chat.messages
        assert live == without_part_ids(chat.do("load").messages, live)
