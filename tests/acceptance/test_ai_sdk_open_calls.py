"""Pages of the AI SDK that are loaded while a run waits for the results of their tools."""

from typing import Any

import pytest

from tests.acceptance.test_ai_sdk import CALCULATE, CLIENTS, LOCATE, new_id, without_part_ids
from tests.ai_sdk_chat import needs_front_ends, open_chat
from tests.caller import Caller, script

pytestmark = needs_front_ends

TOOL = {"tool": "get_location"}
ASK = {"tool": "ask_user", "args": {"question": "Which?"}}
ROME = {"city": "Rome"}
TOOLS = {"get_location": {"output": ROME}, "failing": {"error": "No signal."}}


@pytest.fixture(scope="module")
def located(user: Caller) -> str:
    """A persona with client tools, of which one requires approval."""
    names = ("get_location", "failing", "guarded", "elsewhere")
    fields: dict[str, Any] = {
        "tools": ["calculator", "ask_user"],
        "client_tools": [{**LOCATE, "name": name} for name in names],
        "require_approval": ["guarded"],
    }
    return str(user.made("/v1/personas", {"key": "located", **fields})["id"])


@pytest.mark.parametrize("strictly", [True, False])
@pytest.mark.parametrize(("ai", "version"), CLIENTS)
def test_a_page_executes_the_calls_that_it_finds_open(
    user: Caller, located: str, ai: str, version: str | None, strictly: bool
) -> None:
    """The page before it was closed while its tools were at work."""
    chat_id = new_id()
    setup: dict[str, Any] = {"version": version, "body": {"persona_id": located}}
    calls = {"tools": [TOOL, CALCULATE, {"tool": "failing"}]}
    with (
        open_chat(user, chat_id, ai, **setup) as first,
        open_chat(user, chat_id, ai, **setup, automatic=True, tools=TOOLS) as second,
    ):
        first.do("send", text=script(calls, TOOL, {"say": "Done."}))
        assert 2 == len(first.said["toolCalls"])
        second.do("load").do("mount", strictly=strictly)

        assert ("ready", None, "Done.") == (*second.status, second.text)
        parts = [part for part in second.answer["parts"] if part["type"].startswith("tool-")]
        results = [part.get("output", part.get("errorText")) for part in parts]
        assert [ROME, "42", "No signal.", ROME] == results
        assert (1, 2) == (len(second.said["toolCalls"]), second.said["posts"])
        assert 3 == second.said["executions"]
        live = second.messages
        assert live == without_part_ids(second.do("load").messages, live)
        assert 2 == second.do("mount").said["posts"]


@pytest.mark.parametrize(("ai", "version"), CLIENTS)
def test_a_call_that_a_page_gets_again_is_executed_once(
    user: Caller, located: str, ai: str, version: str | None
) -> None:
    """Its output has not arrived, so the page resumes, and gives the same output again."""
    setup: dict[str, Any] = {"version": version, "body": {"persona_id": located}}
    with open_chat(user, new_id(), ai, **setup, tools=TOOLS) as chat:
        chat.do("send", text=script(TOOL, {"say": "Done."})).do("resume")

        assert (2, 1) == (len(chat.said["toolCalls"]), chat.said["executions"])
        assert ROME == chat.call("get_location")["output"]
        assert "Done." == chat.do("submit").text


@pytest.mark.parametrize("call", [ASK, {"tool": "guarded"}, {"tool": "elsewhere"}])
def test_a_page_does_not_execute_other_calls(
    user: Caller, located: str, call: dict[str, Any]
) -> None:
    """Questions have a form, approvals a person, and other tools another page."""
    chat_id = new_id()
    setup: dict[str, Any] = {"version": "7.0.173", "body": {"persona_id": located}}
    tools = {**TOOLS, "guarded": {"output": ROME}}
    with (
        open_chat(user, chat_id, **setup) as first,
        open_chat(user, chat_id, **setup, automatic=True, tools=tools) as second,
    ):
        first.do("send", text=script(call, {"say": "Done."}))
        loaded = second.do("load").messages
        second.do("mount")

        assert loaded == second.messages
        assert 0 == second.said["posts"]
