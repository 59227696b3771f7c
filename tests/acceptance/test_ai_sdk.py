"""`useChat` without React: the unmodified clients of `ai` 5, 6 and 7 against the service."""

import json
import secrets
import time
from pathlib import Path
from typing import Any

import pytest

from tests.ai_sdk_chat import needs_front_ends, open_chat
from tests.caller import Caller, script
from tests.waiting import eventually

pytestmark = needs_front_ends

GOLDENS = Path(__file__).parents[1] / "api" / "protocols" / "goldens"

CALCULATE = {"tool": "calculator", "args": {"expression": "6*7"}}
LOCATE = {
    "name": "get_location",
    "description": "Return where the user is.",
    "parameters": {"type": "object", "properties": {}},
    "client": True,
}
#: Each client, and the version that it says it is.
CLIENTS = [("ai5", "5"), ("ai6", "6"), ("ai7", "7.0.173"), ("ai7", None)]


def new_id() -> str:
    return secrets.token_urlsafe(12)


@pytest.fixture(scope="module")
def careful(user: Caller) -> str:
    """A persona that requires approval of the calculator, and has a client tool."""
    fields = {
        "tools": ["calculator", "ask_user"],
        "client_tools": [LOCATE],
        "require_approval": ["calculator"],
    }
    return str(user.made("/v1/personas", {"key": "careful", **fields})["id"])


@pytest.mark.parametrize(("ai", "version"), CLIENTS)
def test_a_turn_with_tools_is_streamed(user: Caller, ai: str, version: str | None) -> None:
    """Reasoning, text, a call and its result arrive, and are the same after a reload."""
    said = script({"think": "Hm. "}, {"say": "Let me see."}, CALCULATE, {"say": "42 it is."})
    with open_chat(user, new_id(), ai, version=version) as chat:
        chat.do("send", text=said)
        assert ("ready", None) == chat.status
        kinds = [part["type"] for part in chat.answer["parts"]]
        assert ["step-start", "reasoning", "text", "tool-calculator", "step-start", "text"] == kinds
        assert ("output-available", "42") == (
            chat.call("calculator")["state"],
            chat.call("calculator")["output"],
        )
        live = chat.messages
        assert live == without_part_ids(chat.do("load").messages, live)


def without_part_ids(loaded: Any, live: Any) -> Any:
    """Leave out the ids of reasoning parts where the client does not keep them."""
    if any("id" in part for message in live for part in message["parts"]):
        return loaded
    for message in loaded:
        for part in message["parts"]:
            part.pop("id", None)
    return loaded


@pytest.mark.parametrize(
    ("ai", "version", "approved"),
    [("ai6", "6", True), ("ai7", "7.0.173", False), ("ai7", None, True)],
)
def test_an_approval_is_answered(
    user: Caller, careful: str, ai: str, version: str | None, approved: bool
) -> None:
    """The client shows the request, sends the response by itself, and shows what comes of it."""
    said = script({"say": "May I?"}, CALCULATE, {"say": "Done."})
    setup = {"version": version, "automatic": True, "body": {"persona_id": careful}}
    with open_chat(user, new_id(), ai, **setup) as chat:
        chat.do("send", text=said)
        call = chat.call("calculator")
        assert ("ready", None) == chat.status
        assert "approval-requested" == call["state"]
        chat.do("approve", id=call["approval"]["id"], approved=approved, reason="no numbers")
        assert ("ready", None) == chat.status
        state = "output-available" if approved else "output-denied"
        assert state == chat.call("calculator")["state"]
        assert "May I?Done." == chat.text
        assert 2 == len(chat.messages)


@pytest.mark.parametrize(("ai", "version"), CLIENTS)
def test_client_tools_and_questions_are_answered(
    user: Caller, careful: str, ai: str, version: str | None
) -> None:
    """`onToolCall` gets them when the run waits, and what `addToolOutput` gives goes back."""
    ask = {"tool": "ask_user", "args": {"question": "Which?", "options": ["a", "b"]}}
    said = script(
        {"tools": [{"tool": "get_location"}, {"tool": "get_location"}]}, ask, {"say": "ok"}
    )
    setup = {"version": version, "automatic": True, "body": {"persona_id": careful}}
    with open_chat(user, new_id(), ai, **setup) as chat:
        chat.do("send", text=said)
        assert ("ready", None) == chat.status
        calls = [call["toolCallId"] for call in chat.said["toolCalls"]]
        assert 2 == len(calls)
        chat.do("output", tool="get_location", toolCallId=calls[0], output={"lat": 41.9})
        chat.do("output", tool="get_location", toolCallId=calls[1], output="12")
        asked = chat.call("ask_user")
        assert ("input-available", "Which?") == (asked["state"], asked["input"]["question"])
        chat.do("output", tool="ask_user", toolCallId=asked["toolCallId"], output="b")
        assert ("ready", None) == chat.status
        assert "ok" == chat.text
        live = chat.messages
        outputs = [p["output"] for p in live[-1]["parts"] if p["type"].startswith("tool-")]
        assert [{"lat": 41.9}, "12", "b"] == outputs
        assert live == without_part_ids(chat.do("load").messages, live)


@pytest.mark.parametrize(("ai", "version"), CLIENTS)
def test_each_question_of_a_chat_is_answered(
    user: Caller, careful: str, ai: str, version: str | None
) -> None:
    """The calls of two runs have the same id there, as those of some vendors have."""
    setup = {"version": version, "automatic": True, "body": {"persona_id": careful}}
    with open_chat(user, new_id(), ai, **setup) as chat:
        for city in ("Rome", "Paris"):
            ask = {"tool": "ask_user", "args": {"question": "Which?"}}
            chat.do("send", text=script(ask, {"say": f"{city} it is."}))
            asked = chat.call("ask_user")
            assert "input-available" == asked["state"]
            chat.do("output", tool="ask_user", toolCallId=asked["toolCallId"], output=city)
            assert ("ready", None) == chat.status
            assert (city, f"{city} it is.") == (chat.call("ask_user")["output"], chat.text)


@pytest.mark.parametrize(("ai", "version"), CLIENTS[1:])
def test_a_turn_asks_for_an_approval_and_more(
    user: Caller, careful: str, ai: str, version: str | None
) -> None:
    """The page sends each answer once, and none while something else is open."""
    ask = {"tool": "ask_user", "args": {"question": "Which?"}}
    said = script({"tools": [CALCULATE, {"tool": "get_location"}, ask]}, {"say": "ok"})
    setup = {"version": version, "automatic": True, "body": {"persona_id": careful}}
    with open_chat(user, new_id(), ai, **setup) as chat:
        chat.do("send", text=said)
        chat.do("approve", id=chat.call("calculator")["approval"]["id"], approved=True)
        for tool, output in [("ask_user", "b"), ("get_location", {"lat": 41.9})]:
            assert ("ready", None) == chat.status
            chat.do("output", tool=tool, toolCallId=chat.call(tool)["toolCallId"], output=output)
        assert ("ready", None, "ok") == (*chat.status, chat.text)
        assert 4 == chat.said["posts"]


@pytest.mark.parametrize(("ai", "version"), CLIENTS[1:])
def test_an_approval_that_another_tab_has_answered_is_not_open(
    user: Caller, careful: str, ai: str, version: str | None
) -> None:
    """A page that resumes is asked for the rest alone; a late denial of another one is refused."""
    chat_id = new_id()
    ask = {"tool": "ask_user", "args": {"question": "Which?"}}
    setup: dict[str, Any] = {"version": version, "automatic": True}
    setup["body"] = {"persona_id": careful}
    with (
        open_chat(user, chat_id, ai, **setup) as first,
        open_chat(user, chat_id, ai, **setup) as second,
        open_chat(user, chat_id, ai, **setup) as late,
    ):
        first.do("send", text=script({"tools": [CALCULATE, ask]}, {"say": "ok"}))
        approval_id = first.call("calculator")["approval"]["id"]
        for page in (second, late):
            page.do("load")
        first.do("approve", id=approval_id, approved=True)
        second.do("resume")
        calls = [part for part in second.answer["parts"] if part["type"].startswith("tool-")]
        assert ["tool-ask_user"] == [call["type"] for call in calls if is_open(call)]

        late.do("approve", id=approval_id, approved=False)
        assert "input.stale" in str(late.status[1])

        asked = second.call("ask_user")
        second.do("output", tool="ask_user", toolCallId=asked["toolCallId"], output="b")
        assert ("ready", None, "ok", 1) == (*second.status, second.text, second.said["posts"])
        assert "completed" == second.answer["metadata"]["arkloop"]["status"]


@pytest.mark.parametrize(("ai", "version"), CLIENTS[1:])
def test_a_call_that_another_tab_has_denied_fits_the_schema(
    user: Caller, careful: str, ai: str, version: str | None
) -> None:
    """A page of `ai` 6 knows no reply to show with it: the call has failed there."""
    chat_id = new_id()
    setup: dict[str, Any] = {"version": version, "automatic": True}
    setup["body"] = {"persona_id": careful}
    with (
        open_chat(user, chat_id, ai, **setup) as first,
        open_chat(user, chat_id, ai, **setup) as second,
    ):
        first.do("send", text=script(CALCULATE, {"say": "ok"}))
        second.do("load")
        approval = {"id": first.call("calculator")["approval"]["id"], "approved": False}
        first.do("approve", **approval, reason="no numbers")
        second.do("resume")

        for page in (first, second):
            page.do("valid", versions=[ai])
            assert ("ready", None) == page.status
        assert "output-denied" == first.call("calculator")["state"]
        shown = second.call("calculator")
        assert "no numbers" in (shown.get("errorText") or shown["approval"]["reason"])


def is_open(call: dict[str, Any]) -> bool:
    """Return whether the guide's `isOpen` finds the call open."""
    is_of_page = call["state"] == "input-available" and not call.get("providerExecuted")
    return call["state"] == "approval-requested" or is_of_page


@pytest.mark.parametrize(("ai", "version"), CLIENTS[1:])
def test_a_late_approval_is_sent_once(
    user: Caller, careful: str, ai: str, version: str | None
) -> None:
    """The run was stopped, from another tab for example; the call has a result by that."""
    chat_id = new_id()
    setup = {"version": version, "automatic": True, "body": {"persona_id": careful}}
    with open_chat(user, chat_id, ai, **setup) as chat:
        chat.do("send", text=script(CALCULATE, {"say": "ok"}))
        assert 200 == user.http.post(f"/v1/ui/chat/{chat_id}/stop").status_code
        chat.do("approve", id=chat.call("calculator")["approval"]["id"], approved=True)
        assert ("ready", None, 2) == (*chat.status, chat.said["posts"])
        assert "output-denied" == chat.call("calculator")["state"]
        time.sleep(0.5)  # each 100 ms is another request
        assert 2 == chat.do("state").said["posts"]
        chat.do("load").do("valid", versions=["ai6-first", "ai6", "ai7-first", "ai7"])
        assert ("ready", None) == chat.status


@pytest.mark.parametrize("transport", ["default", "workflow"])
def test_a_reload_resumes_the_answer(user: Caller, transport: str) -> None:
    """A new page shows what was said, and streams the answer from its first chunk on."""
    chat_id = new_id()
    said = script({"say": "x ", "repeat": 60, "delay_ms": 150}, {"say": "end"})
    setup: dict[str, Any] = {"version": "7.0.173", "transport": transport}
    with open_chat(user, chat_id, **setup) as first, open_chat(user, chat_id, **setup) as second:
        assert [] == second.do("load").messages
        first.do("begin", text=said)
        first.do("until", text="x x")
        assert 1 == len(second.do("load").messages)
        second.do("resume")
        first.do("settle")
        assert ("ready", None) == second.status == first.status
        assert first.messages == second.messages
        assert second.messages == second.do("load").messages
        second.do("resume")
        assert ("ready", None) == second.status
        assert first.messages == second.messages


@pytest.mark.parametrize("ai", ["ai5-first", "ai5", "ai6-first", "ai6", "ai7-first", "ai7"])
def test_a_reload_does_not_execute_calls_again(user: Caller, careful: str, ai: str) -> None:
    """Calls and questions that are answered are shown with their results alone."""
    chat_id = new_id()
    ask = {"tool": "ask_user", "args": {"question": "Which?"}}
    calls = {"tools": [{"tool": "get_location"}, {"tool": "get_location"}]}
    said = script(calls, ask, {"say": "x ", "repeat": 80, "delay_ms": 25}, {"say": "end"})
    setup: dict[str, Any] = {"version": "7.0.173", "body": {"persona_id": careful}}
    version = {"5": "5.0.0", "6": "6.0.0", "7": "7.0.0"}[ai[2]]
    with (
        open_chat(user, chat_id, **setup) as first,
        open_chat(user, chat_id, ai, version=version) as second,
    ):
        first.do("send", text=said)
        found, failed = (call["toolCallId"] for call in first.said["toolCalls"])
        first.do("output", toolCallId=found, output={"lat": 41.9})
        first.do("output", toolCallId=failed, state="output-error", errorText="No signal.")
        first.do("submit")
        first.do("output", toolCallId=first.call("ask_user")["toolCallId"], output="b")
        first.do("submitting")
        first.do("until", text="x x")
        second.do("load").do("resume")
        first.do("settle")

        assert ("ready", None) == second.status == first.status
        assert [] == second.said["toolCalls"]
        assert 3 == len(first.said["toolCalls"])
        shown = second.messages[-1]["parts"]
        if ai == "ai5-first":  # sees no `providerExecuted` of a `tool-output-error`
            [error] = [part for part in shown if part.get("state") == "output-error"]
            error["providerExecuted"] = False
        assert shown == second.do("load").messages[-1]["parts"]


def test_what_failed_and_what_was_stopped_ends_the_stream(user: Caller) -> None:
    """An error is shown, a stop ends the run, and a new message is answered after both."""
    chat_id = new_id()
    with open_chat(user, chat_id, version="7.0.173", transport="workflow") as chat:
        chat.do("send", text=script({"say": "Well."}, {"error": "invalid_request"}))
        assert ("error", "The script says: invalid_request.") == chat.status
        chat.do("begin", text=script({"say": "Well."}, {"hang": 60}))
        chat.do("until", text="Well.")
        stopped = user.http.post(f"/v1/ui/chat/{chat_id}/stop")
        assert (200, {"ok": True, "stopped": True}) == (stopped.status_code, stopped.json())
        chat.do("settle")
        assert ("ready", None) == chat.status
        chat.do("send", text="Hello")
        assert "You said: Hello" == chat.text
        chat.do("regenerate")
        assert "You said: Hello" == chat.text
        # The run that failed said nothing: a reload shows by the metadata what became of it.
        [failed] = [message for message in chat.messages if not message["parts"]]
        kept = [message for message in chat.messages if message["parts"]]
        assert 5 == len(kept)
        [shown] = [one for one in chat.do("load").messages if one["id"] == failed["id"]]
        assert [{"type": "step-start"}] == shown["parts"]
        error = shown["metadata"]["arkloop"]["error"]
        assert "The script says: invalid_request." == error["message"]
        assert kept == [one for one in chat.messages if one != shown]
        chat.do("send", text="Again")
        assert "You said: Again" == chat.text


@pytest.mark.parametrize("is_read", [True, False])
@pytest.mark.parametrize(("ai", "version"), CLIENTS[:3])
def test_a_message_that_steers_a_run_is_answered(
    user: Caller, ai: str, version: str, is_read: bool
) -> None:
    """The answer is that run's, or that of a run of its own, for which the guide's page resumes."""
    chat_id, slowly = new_id(), {"say": "x ", "repeat": 40, "delay_ms": 50}
    setup = {"version": version, "body": {"on_busy": "steer"}, "steers": True}
    with open_chat(user, chat_id, ai, **setup) as chat:
        chat.do("begin", text=script(slowly, *([CALCULATE] if is_read else []), {"say": "fin"}))
        chat.do("until", text="x x")
        chat.do("begin", text="In French, please")
        eventually(lambda: "You said: In French, please" in json.dumps(chat.do("state").messages))
        chat.do("settle")

        assert ("ready", None, 2) == (*chat.status, chat.said["posts"])
        roles = ["user", "assistant", "user"] + ([] if is_read else ["assistant"])
        assert roles == [message["role"] for message in chat.messages]


@pytest.mark.parametrize(("ai", "version"), CLIENTS[:3])
def test_a_page_that_steers_resumes_after_a_reload(user: Caller, ai: str, version: str) -> None:
    """The guide's effect does that, so its snippet has no `resume: true`."""
    chat_id, slowly = new_id(), {"say": "x ", "repeat": 40, "delay_ms": 50}
    with open_chat(user, chat_id, ai) as first, open_chat(user, chat_id, ai, steers=True) as second:
        first.do("begin", text=script(slowly)).do("until", text="x x")
        second.do("load").do("until", text="x").do("settle")  # `ai` 7 shows no status before
        assert ("ready", None, 40) == (*second.status, second.text.count("x"))


def test_a_stop_ends_the_run_of_a_message_that_is_on_its_way(user: Caller) -> None:
    """The guide's button sends it again until the message has arrived."""
    with open_chat(user, new_id(), version="7.0.173", delay=1_000) as chat:
        chat.do("begin", text=script({"say": "x ", "repeat": 600, "delay_ms": 100}))
        chat.do("stopRun").do("settle")
        assert ("ready", None) == chat.status
        eventually(lambda: len(chat.do("load").messages) == 2)
        assert "cancelled" == chat.answer["metadata"]["arkloop"]["status"]


def test_a_repeated_call_takes_back_what_it_had_streamed(user: Caller) -> None:
    """The client gets `reset-step` if it knows it, and text that begins anew in a part of its own
    if not.
    """
    said = script({"think": "Hm."}, {"say": "One two "}, {"error": "disconnect"}, {"say": "three"})
    for version, text in [("7.0.70", "One two three"), ("7.0.69", "One two One two three")]:
        with open_chat(user, new_id(), version=version) as chat:
            chat.do("send", text=said)
            assert ("ready", None, text) == (*chat.status, chat.text)


def test_goldens_fit_the_schemas_of_their_versions(user: Caller) -> None:
    """The first and the last release of each dialect accept every chunk of recorded runs."""
    releases = {
        "5.0.0": ["ai5-first", "ai5"],
        "6.0.0": ["ai6-first", "ai6"],
        "7.0.0": ["ai7-first", "ai7"],
        "7.0.70": ["ai7"],
    }
    with open_chat(user, new_id()) as chat:
        for version, names in releases.items():
            for golden in (GOLDENS / f"ai_sdk_{version}").glob("*.sse"):
                frames = golden.read_text().split("\n\n")
                data = [frame.removeprefix("data: ") for frame in frames if "{" in frame]
                chunks = [json.loads(one) for one in data]
                chat.do("validate", versions=names, chunks=chunks)
                assert None is chat.said.get("error"), golden
