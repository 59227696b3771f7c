"""Cancel: of runs that are queued, executing, waiting and over; and what is left of them."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from arkloop.shared.catalog import personas
from arkloop.shared.storage.tables.events import run_events
from tests.caller import Caller, error_of, parsed, text_of, types
from tests.system import System, register
from tests.web_server import WebServer

NOTHING_USED = {
    "usage": {
        "input_tokens": 0,
        "output_tokens": 0,
        "cache_read_tokens": 0,
        "source": "reported",
    },
    "cost_usd": 0.0,
}


def test_a_queued_run_is_cancelled_at_once_with_no_worker_there(server: WebServer) -> None:
    """Its only event is `run.cancelled`, seq 1; a client that followed it sees the end."""
    user = register(server.url)
    run_id = user.run("Hi")
    assert ("running", "queued") == tuple(user.get_run(run_id)[k] for k in ("status", "phase"))

    with user.stream(run_id) as answer:
        user.cancel(run_id)
        run = user.get_run(run_id)
        events = list(parsed(answer))

    assert ("cancelled", "finished", 0) == (run["status"], run["phase"], run["attempt"])
    assert run["cancelled_at"] is not None
    assert run["started_at"] is None
    assert [(1, "run.cancelled", NOTHING_USED)] == [
        (event["seq"], event["type"], event["data"]) for event in events
    ]
    assert [("user", "Hi", False)] == user.messages(run["thread_id"])


def test_a_hanging_model_is_cut_off(user: Caller) -> None:
    """Text already streamed is kept as a partial message, and what was used is counted."""
    run_id = user.run({"say": "A part of"}, {"hang": 100}, {"say": " the answer"})
    user.seen(run_id, "message.delta")

    began = time.monotonic()
    user.cancel(run_id)
    events = user.events(run_id)

    assert time.monotonic() - began < 90
    assert ["run.cancel_requested", "run.cost", "run.cancelled"] == types(events)[-3:]
    assert {"by_user_id": user.id} == events[-3]["data"]
    assert "A part of" == text_of(events)
    run = user.get_run(run_id)
    assert ("cancelled", "finished") == (run["status"], run["phase"])
    assert (3, "estimated") == (run["usage"]["output_tokens"], run["usage"]["source"])
    assert events[-1]["data"] == {"usage": run["usage"], "cost_usd": run["cost_usd"]}
    assert run["cost_usd"] == (run["usage"]["input_tokens"] + 2 * 3) / 1_000_000
    assert ("assistant", "A part of", True) == user.messages(run["thread_id"])[-1]


def test_a_revoked_key_stops_spending(system: System, user: Caller) -> None:
    """Its executing and waiting runs are cancelled within 10 s; the owner's others go on."""
    key_id, key = user.api_key()
    by_key = user.at(token=key)
    executing, other = (one.run({"say": "A part"}, {"hang": 100}) for one in (by_key, user))
    waiting = by_key.run({"tool": "ask_user", "args": {"question": "?"}})
    user.seen(executing, "message.delta")
    user.until(waiting, "status", "waiting_for_input")

    began = time.monotonic()
    assert 204 == user.http.delete(f"/v1/api-keys/{key_id}").status_code
    ended = [user.ended(run_id)["status"] for run_id in (executing, waiting)]

    assert ["cancelled", "cancelled"] == ended
    assert time.monotonic() - began < 50  # ten are promised, and a busy machine has the rest
    assert {"by_user_id": user.id} == user.events(executing)[-3]["data"]
    assert "running" == user.get_run(other)["status"]
    user.cancel(other)


def test_a_run_without_text_leaves_no_message(user: Caller) -> None:
    """Cancelled before its first word, it has nothing to keep."""
    run_id = user.run({"hang": 100})
    user.seen(run_id, "run.started")
    user.cancel(run_id)

    run = user.ended(run_id)

    assert ["user"] == [role for role, _, _ in user.messages(run["thread_id"])]


def test_running_tools_are_told(user: Caller) -> None:
    """Two tools that sleep for minutes are over at once; text of finished turns is not partial."""
    sleep = {"tool": "sleep", "args": {"seconds": 300}}
    run_id = user.run({"say": "Wait."}, {"tools": [sleep, sleep]}, {"say": "never"})
    user.seen(run_id, "tool.call", 2)

    began = time.monotonic()
    user.cancel(run_id)
    events = user.events(run_id)

    assert time.monotonic() - began < 90
    assert "run.cancelled" == events[-1]["type"]
    assert "tool.result" not in types(events)
    assert ["user"] == [r for r, _, _ in user.messages(user.get_run(run_id)["thread_id"])]


def test_a_waiting_run_is_cancelled_at_once(user: Caller) -> None:
    """Its question is gone, and an answer comes too late."""
    run_id = user.run({"say": "So:"}, {"tool": "ask_user", "args": {"question": "?"}})
    user.until(run_id, "status", "waiting_for_input")

    user.cancel(run_id)
    run = user.get_run(run_id)

    assert ("cancelled", "finished", None) == (run["status"], run["phase"], run["pending_input"])
    assert "run.cancelled" == user.events(run_id)[-1]["type"]
    assert "run.cancel_requested" not in types(user.events(run_id))
    assert (409, "runs.not_active") == error_of(user.answer(run_id, "yes"))


@pytest.mark.parametrize("message", ["Hi", '{"script": [{"error": "invalid_request"}]}'])
def test_a_finished_run_stays_as_it_is(user: Caller, message: str) -> None:
    """200, again and again; status, events and messages are what they were."""
    run_id = user.run(message)
    before = (user.ended(run_id), user.raw(run_id))

    for _ in range(3):
        user.cancel(run_id)

    assert before == (user.get_run(run_id), user.raw(run_id))


def test_many_cancels_are_one(system: System, user: Caller) -> None:
    """Sixteen at once at two servers: each 200, the run ends once."""
    run_id = user.run({"count": 5000, "delay_ms": 1})
    user.seen(run_id, "message.delta")
    callers = [user.at(server.url) for server in system.web] * 8

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda caller: caller.cancel(run_id), callers))

    names = types(user.events(run_id))
    assert 1 == names.count("run.cancel_requested")
    assert 1 == names.count("run.cancelled")
    assert "run.cancelled" == names[-1]


@pytest.mark.parametrize(
    ("body", "status"), [("", 200), ("{}", 200), ('{"reason": "x"}', 422), ("[]", 422)]
)
def test_the_body_is_optional(user: Caller, body: str, status: int) -> None:
    """No body and an empty object are the same, and unknown fields are refused."""
    answer = user.http.post(
        f"/v1/runs/{user.run('Hi')}:cancel",
        content=body,
        headers={"Content-Type": "application/json"},
    )

    assert status == answer.status_code


def test_nothing_comes_after_the_end(system: System, user: Caller, tmp_path: Path) -> None:
    """Runs cancelled at every moment of their life: one terminal event, and it is the last."""
    line = {"tool": "append_line", "args": {"path": str(tmp_path / "lines"), "line": "x"}}
    # It hangs at last: a run that ended before its cancel came would prove nothing.
    steps: list[dict[str, Any]] = [*[{"count": 20, "delay_ms": 5}, line] * 5, {"hang": 100}]

    def cancelled(number: int) -> str:
        run_id = user.run(*steps)
        with user.stream(run_id) as answer:
            next(event for event in parsed(answer) if event["seq"] > number)
        user.cancel(run_id)
        return run_id

    with ThreadPoolExecutor(10) as pool:
        run_ids = list(pool.map(cancelled, range(20)))

    for run_id in run_ids:
        assert "cancelled" == user.ended(run_id)["status"]
    for run_id in run_ids:
        with system.connections.reading() as sql:
            stored = sql.execute(
                select(run_events.c.seq, run_events.c.type)
                .where(run_events.c.run_id == UUID(run_id))
                .order_by(run_events.c.seq)
            ).all()
        assert list(range(1, len(stored) + 1)) == [seq for seq, _ in stored]
        ends = [name for _, name in stored if name in ("run.cancelled", "run.completed")]
        assert ["run.cancelled"] == ends == [stored[-1].type]


def test_the_thread_goes_on_after_a_cancel(user: Caller) -> None:
    """A new run at once; its model sees the partial text as what it said itself."""
    thread_id = user.thread('{"script": [{"say": "one two three"}, {"hang": 100}]}')
    first = user.start(thread_id, persona_id="plain")
    user.seen(first, "message.delta")
    user.cancel(first)
    user.ended(first)
    user.say(thread_id, "go on")

    second = user.ended(user.start(thread_id, persona_id="plain"))

    said = [content for _, content, _ in user.messages(thread_id)]
    assert ["one two three", "go on", "You said: go on"] == said[1:]
    seen = [personas.builtin()["plain@1"].system_prompt, *said[:3]]
    assert sum(len(text.split()) for text in seen) == second["usage"]["input_tokens"]
