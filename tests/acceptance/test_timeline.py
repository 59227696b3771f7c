"""The timeline equals what a client that followed the streams has assembled, at every moment."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest
from httpx_sse import EventSource

from tests.caller import Caller, Event, script
from tests.system import System
from tests.waiting import eventually

pytestmark = pytest.mark.processes

STREAMED = {"message.delta", "message.thinking", "tool.call.delta"}
TERMINAL = {"run.completed", "run.failed", "run.cancelled"}
CALCULATE = {"tool": "calculator", "args": {"expression": "6*7"}}
ASK = {"tool": "ask_user", "args": {"question": "Which city?", "options": ["Paris", "Rome"]}}
LOCATE = {
    "name": "get_location",
    "description": "Return where the user is.",
    "parameters": {"type": "object"},
    "client": True,
}


def assembled(events: list[Event]) -> list[dict[str, Any]]:
    """Return the turns as a client makes them that has all of these events: not one by one, and
    with none of the service's code.
    """
    resets = [(e["data"]["from_seq"], e["seq"]) for e in events if e["type"] == "message.reset"]
    turns: list[list[Event]] = []
    for event in events:
        if event["type"] in STREAMED and any(a <= event["seq"] < b for a, b in resets):
            continue
        if event["type"] in STREAMED | {"message.completed"}:
            if not turns or any(e["type"] == "message.completed" for e in turns[-1]):
                turns.append([])
            turns[-1].append(event)
        elif turns:
            turns[-1].append(event)
    return [_turn(turn) for turn in turns]


def _turn(events: list[Event]) -> dict[str, Any]:
    def of(kind: str) -> list[dict[str, Any]]:
        return [e["data"] for e in events if e["type"] == kind]

    completed: dict[str, Any] = (of("message.completed") or [{}])[0]
    answers = {a["request_id"]: a["content"] for a in of("run.input_received")}
    text = "".join(piece["content"] for piece in of("message.delta"))
    if completed:
        # Text that was finished is what was streamed; clients may use either.
        assert text == completed["content"]
    return {
        "message_id": completed.get("message_id"),
        "reasoning": "".join(piece["content"] for piece in of("message.thinking")),
        "text": text,
        "tool_calls": [_call(call, events) for call in of("tool.call")]
        if completed
        else _written(of("tool.call.delta")),
        "questions": [
            {**asked, "answer": answers.get(asked["request_id"])}
            for asked in of("run.waiting_for_input")
        ],
        "usage": completed.get("usage"),
    }


def _call(call: dict[str, Any], events: list[Event]) -> dict[str, Any]:
    about = [e for e in events if e["data"].get("tool_call_id") == call["tool_call_id"]]
    shown = {name: call[name] for name in ("tool_call_id", "name", "arguments")}
    shown["result"] = None
    for event in about:
        data = {k: v for k, v in event["data"].items() if k not in ("tool_call_id", "name")}
        if event["type"] == "tool.result":
            shown["result"] = data
        elif event["type"] == "run.delegated":
            shown["sub_run"] = data
    return shown


def _written(pieces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    calls: dict[str, dict[str, Any]] = {}
    for piece in pieces:
        empty = {"tool_call_id": piece["tool_call_id"], "name": "", "arguments_text": ""}
        call = calls.setdefault(piece["tool_call_id"], empty)
        call["name"] = piece["name"]
        call["arguments_text"] += piece["arguments_delta"]
    return list(calls.values())


class Follower:
    """A client that follows runs from their beginning, and looks at their thread meanwhile."""

    def __init__(self, user: Caller, thread_id: str) -> None:
        self.user, self.thread_id = user, thread_id
        self.streams: dict[str, list[Event]] = {}
        self.snapshots: list[dict[str, Any]] = []

    @contextmanager
    def following(self, run_id: str) -> Iterator[None]:
        """Follow the run until it has ended, which is waited for."""
        self.streams[run_id] = []
        thread = threading.Thread(
            target=lambda: self.streams[run_id].extend(self.user.events(run_id)), daemon=True
        )
        thread.start()
        yield
        while thread.is_alive():
            self.look()
            thread.join(0.05)
        self.look()

    def look(self) -> dict[str, Any]:
        """Look at the newest run; returns it."""
        *_, run = self.user.get(f"/v1/threads/{self.thread_id}/timeline", limit=1)
        self.snapshots.append(run)
        return dict(run)

    def wait_for(self, **fields: Any) -> dict[str, Any]:
        eventually(lambda: fields.items() <= self.look().items())
        return self.snapshots[-1]


class SecondDevice:
    """A client that follows the whole thread from its beginning, by one stream."""

    def __init__(self, user: Caller, thread_id: str) -> None:
        self.streams: dict[str, list[Event]] = {}
        self.messages: list[str] = []
        self.supersedes: list[list[str]] = []
        threading.Thread(target=self._follow, args=(user, thread_id), daemon=True).start()

    def has_ended(self, run_id: str) -> bool:
        return bool(self.streams[run_id]) and self.streams[run_id][-1]["type"] in TERMINAL

    def _follow(self, user: Caller, thread_id: str) -> None:
        path = f"/v1/threads/{thread_id}/events"
        # The servers stop before it does.
        with suppress(httpx.HTTPError), user.http.stream("GET", path) as answer:
            for sent in EventSource(answer).iter_sse():
                run_id, _, seq = sent.id.partition(":")
                event = sent.json()
                assert seq == str(event["seq"])
                if event["type"] == "thread.run":
                    assert run_id == event["data"]["run_id"]
                    self.streams[run_id] = []
                    self.supersedes.append(event["data"]["supersedes"])
                    self.messages += [message["id"] for message in event["data"]["messages"]]
                else:
                    self.streams[run_id].append(event)


@pytest.fixture(scope="module")
def persona(user: Caller) -> str:
    """A persona that streams arguments, has a tool of its client's, and gives tasks to others."""
    fields = {
        "key": "everything",
        "tools": ["calculator", "ask_user"],
        "client_tools": [LOCATE],
        "delegates": ["plain"],
        "stream_tool_arguments": True,
    }
    return str(user.made("/v1/personas", fields)["id"])


def test_the_timeline_is_what_the_followers_have(
    system: System, user: Caller, persona: str
) -> None:
    """It agrees whatever happens to the runs: a broken call, a lost worker, tools, questions, sub-
    runs, a cancel amid text and a retry; also at every moment before they end. A second device,
    which follows the thread by one stream, has the same.
    """
    thread_id = user.thread()
    follower = Follower(user, thread_id)
    device = SecondDevice(user, thread_id)

    def start(*steps: dict[str, Any]) -> str:
        user.say(thread_id, script(*steps))
        return user.start(thread_id, persona_id=persona)

    broken = start({"think": "hm "}, {"say": "half"}, {"error": "disconnect"}, {"say": " whole"})
    with follower.following(broken):
        pass
    lost = start(
        CALCULATE,
        {"say": "half an answer"},
        {"hang": 1.5},
        {"exit_worker": True, "attempts": 1},
        {"say": ", and the rest"},
    )
    with follower.following(lost):
        pass
    task = {"tool": "delegate", "args": {"persona": "plain", "task": script({"say": "done"})}}
    slow = {"tool": "sleep", "args": {"seconds": 1.5}}
    called = start(
        {"think": "Two at once."},
        {"say": "Let me see."},
        {"tools": [slow, CALCULATE, task], "piece": 4, "delay_ms": 20},
        {"tools": [CALCULATE, {"tool": "get_location", "args": {}}]},
        ASK,
        {"say": "ok", "delay_ms": 20},
    )
    with follower.following(called):
        follower.wait_for(status="waiting_for_input")
        result = [{"tool_call_id": "call_2_2", "output": "Rome"}]
        answer = user.http.post(f"/v1/runs/{called}/tool-results", json=result)
        assert 200 == answer.status_code, answer.text
        eventually(lambda: (follower.look()["pending_input"] or {}).get("kind") == "question")
        assert 200 == user.answer(called, "Rome").status_code
    cancelled = start({"say": "never to be finished"}, {"hang": 60})
    with follower.following(cancelled):
        eventually(lambda: any(turn["text"] for turn in follower.look()["turns"]))
        user.cancel(cancelled)
    retried = user.retry(thread_id).json()["run_id"]
    with follower.following(retried):
        eventually(lambda: any(turn["text"] for turn in follower.look()["turns"]))
        user.cancel(retried)

    entries = user.get(f"/v1/threads/{thread_id}/timeline")
    kinds = [entry["type"] for entry in entries]
    assert ["message", "run"] * 4 + ["run"] == kinds
    shown = {entry["run_id"]: entry for entry in entries if entry["type"] == "run"}
    assert [broken, lost, called, cancelled, retried] == list(shown)
    assert [None, None, None, retried, None] == [run["superseded_by"] for run in shown.values()]
    ends = ["completed"] * 3 + ["cancelled"] * 2
    assert ends == [run["status"] for run in shown.values()]
    for run_id, run in shown.items():
        last = follower.streams[run_id][-1]
        assert last["seq"] == run["seq"]
        assert last["data"]["usage"] == run["usage"]
        assert last["data"]["cost_usd"] == run["cost_usd"]
    for run in [*shown.values(), *follower.snapshots]:
        so_far = [e for e in follower.streams[run["run_id"]] if e["seq"] <= run["seq"]]
        assert assembled(so_far) == run["turns"], json.dumps(run)
    eventually(lambda: device.streams.keys() == shown.keys() and device.has_ended(retried))
    assert follower.streams == device.streams
    asked = [entry["id"] for entry in entries if entry["type"] == "message"]
    assert asked == device.messages
    assert [[], [], [], [], [cancelled]] == device.supersedes
    seqs = {(run["run_id"], run["seq"]) for run in follower.snapshots}
    assert len(seqs) > len(shown) + 5  # they were seen in progress
