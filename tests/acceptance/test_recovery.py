"""Workers that are killed, stopped, or not there: every accepted run continues."""

import json
import os
import re
import shlex
import signal
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from sqlalchemy import select

from arkloop.shared.storage.tables.runs import inputs, runs, tool_calls, workers
from tests.caller import Caller, Event, data_of, text_of, types
from tests.system import CELERY, System
from tests.waiting import eventually
from tests.web_server import GUNICORN, ROOT

pytestmark = pytest.mark.processes

ASK = {"tool": "ask_user", "args": {"question": "?"}}


def resumed(events: list[Event]) -> list[tuple[int, str]]:
    return [
        (event["data"]["attempt"], event["data"]["reason"])
        for event in events
        if event["type"] == "run.resumed"
    ]


def append(path: Path, line: str = "once") -> dict[str, Any]:
    return {"tool": "append_line", "args": {"path": str(path), "line": line}}


def test_runs_of_a_killed_worker_go_on(system: System, user: Caller, tmp_path: Path) -> None:
    """After the last finished step, not from zero; void text is named; followers see it all."""
    lines = tmp_path / "lines"
    victim = user.run(
        append(lines),
        {"say": "half an answer"},
        {"hang": 5},  # a slow machine stores the text within that
        {"exit_worker": True, "attempts": 1},
        {"say": ", and the rest"},
    )
    neighbour = user.run({"count": 80, "delay_ms": 50}, {"say": "end"})

    # Streams that were opened before the crash.
    events = user.events(victim)
    other = user.events(neighbour)

    assert "run.completed" == events[-1]["type"] == other[-1]["type"]
    assert list(range(1, len(events) + 1)) == [event["seq"] for event in events]
    assert [(2, "worker_lost")] == resumed(events)
    assert 2 == user.get_run(victim)["attempt"]
    assert "once\n" == lines.read_text()
    assert 1 == types(events).count("tool.call")
    at = types(events).index("run.resumed")
    assert "message.reset" == events[at + 1]["type"]
    first_void = events[at + 1]["data"]["from_seq"]
    assert "message.delta" == events[first_void - 1]["type"]
    assert "tool.result" == events[first_void - 2]["type"]
    assert "half an answer, and the rest" == text_of(events)
    assert ("assistant", "half an answer, and the rest", False) == user.messages(
        user.get_run(victim)["thread_id"]
    )[-1]
    assert [str(i) for i in range(80)] == re.findall(r"(\d+):", text_of(other))
    for run_id in (victim, neighbour):
        assert user.events(run_id) == (events if run_id == victim else other)


def test_arguments_that_a_killed_worker_has_streamed_are_void(system: System, user: Caller) -> None:
    """They are named and paid for; the next attempt streams them again, under the same id."""
    fields = {"key": "streams", "tools": ["calculator"], "stream_tool_arguments": True}
    persona = user.made("/v1/personas", fields)
    call = {"tool": "calculator", "args": {"expression": "40+2"}, "piece": 2, "delay_ms": 500}
    run_id = user.run(call, {"say": "ok"}, persona_id=persona["id"])
    user.seen(run_id, "tool.call.delta", 2)

    os.kill(system.worker.pid, signal.SIGKILL)
    events = user.events(run_id)

    assert "run.completed" == events[-1]["type"]
    [reset] = data_of(events, "message.reset")
    first = events[reset["from_seq"] - 1]
    assert "tool.call.delta" == first["type"]
    streamed = [e for e in events if e["type"] == "tool.call.delta"]
    whole = [e["data"] for e in streamed if e["seq"] > types(events).index("message.reset")]
    [made] = data_of(events, "tool.call")
    assert {(made["tool_call_id"], "calculator")} == {
        (delta["tool_call_id"], delta["name"]) for delta in whole
    }
    assert made["arguments"] == json.loads("".join(delta["arguments_delta"] for delta in whole))
    assert 1 == events[types(events).index("run.cost")]["data"]["usage"]["output_tokens"]


def kept(system: System, run_id: str) -> list[str]:
    """Return the calls whose result is in the ledger."""
    done = (tool_calls.c.run_id == UUID(run_id)) & tool_calls.c.done_at.is_not(None)
    with system.connections.reading() as sql:
        return list(sql.scalars(select(tool_calls.c.tool_call_id).where(done)))


def test_a_side_effect_is_not_repeated(system: System, user: Caller, tmp_path: Path) -> None:
    """Killed in the middle of the tools of a turn: what was done is known and not done again."""
    lines = tmp_path / "lines"
    slow = {"tool": "sleep", "args": {"seconds": 10}}
    run_id = user.run({"tools": [slow, append(lines)]}, {"say": "ok"})
    eventually(lambda: kept(system, run_id) == ["call_1_2"])

    os.kill(system.worker.pid, signal.SIGKILL)
    events = user.events(run_id)

    assert "once\n" == lines.read_text()
    results = data_of(events, "tool.result")
    assert ["call_1_1", "call_1_2"] == [result["tool_call_id"] for result in results]
    assert ("slept 10 s", False) == (results[0]["output"], results[0]["is_error"])
    assert ("appended", False) == (results[1]["output"], results[1]["is_error"])
    assert "run.completed" == events[-1]["type"]


def test_a_run_that_kills_its_workers_is_given_up(system: System, user: Caller) -> None:
    """Three crashes within one step: `worker.crashed`; the text of the last try is kept."""
    run_id = user.run({"say": "Look:"}, {"exit_worker": True})

    run = user.ended(run_id)
    events = user.events(run_id)

    assert ("failed", 3) == (run["status"], run["attempt"])
    assert ("worker.crashed", False) == (run["error"]["code"], run["error"]["retryable"])
    assert [(2, "worker_lost"), (3, "worker_lost")] == resumed(events)
    assert run["error"] == events[-1]["data"]["error"]
    assert "completed" == user.ended(user.run("Is anybody there?"))["status"]


def test_work_waits_for_a_worker(system: System, user: Caller) -> None:
    """Runs, answers and cancels are accepted without a worker, and carried out when there is
    one.
    """
    waiting = user.run(ASK, {"say": "thanks"})
    cancelled = user.run(ASK)
    for run_id in (waiting, cancelled):
        user.until(run_id, "status", "waiting_for_input")

    with system.without_worker():
        queued = user.run("Hi")
        assert 200 == user.answer(waiting, "yes").status_code
        user.cancel(cancelled)
        phases = {run_id: user.get_run(run_id)["phase"] for run_id in (queued, waiting, cancelled)}
        # Whatever the broker held is gone; the rows are the truth.
        system.connections.redis.flushall()

    assert {queued: "queued", waiting: "queued", cancelled: "finished"} == phases
    assert "You said: Hi" == text_of(user.events(queued))
    assert [{"content": "yes"}] == [
        {"content": data["content"]} for data in data_of(user.events(waiting), "run.input_received")
    ]
    assert "completed" == user.get_run(waiting)["status"]
    with system.connections.reading() as sql:
        consumed = select(inputs.c.consumed_at).where(inputs.c.run_id == UUID(waiting))
        assert sql.scalar(consumed) is not None


def test_a_stopping_worker_hands_its_runs_over(system: System, user: Caller) -> None:
    """SIGTERM: at the next step, or when the drain time is over; it counts as no crash."""
    hanging = user.run({"say": "Hm"}, {"hang": 100})
    user.seen(hanging, "message.delta")
    stopped = psutil.Process(system.worker.pid)
    # Last: the deploy must come while it sleeps.
    between = user.run({"tool": "sleep", "args": {"seconds": 8}}, {"say": "after the deploy"})
    user.seen(between, "tool.call")

    stopped.terminate()
    user.seen(hanging, "message.delta", 2)
    user.cancel(hanging)
    events = {run_id: user.events(run_id) for run_id in (between, hanging)}

    assert not stopped.is_running()
    with system.connections.reading() as sql:
        left = sql.scalar(select(workers.c.id).where(workers.c.pid == stopped.pid))
    assert left is None, "a worker that was stopped looks like one that died"
    for run_id, text, end in (
        (between, "after the deploy", "run.completed"),
        (hanging, "Hm", "run.cancelled"),
    ):
        assert [(1, "deploy")] == resumed(events[run_id])
        assert 1 == user.get_run(run_id)["attempt"]
        assert text == text_of(events[run_id])
        assert end == events[run_id][-1]["type"]
    assert 1 == types(events[between]).count("tool.result")
    with system.connections.reading() as sql:
        crashes = select(runs.c.crashes).where(runs.c.id.in_([UUID(between), UUID(hanging)]))
        assert {0} == set(sql.scalars(crashes))


def test_these_processes_are_those_of_the_procfile(system: System) -> None:
    """What is tested here is started as in production, but for the number of runs at once."""
    lines = dict(
        line.split(": exec ", 1) for line in (ROOT / "Procfile").read_text().splitlines() if line
    )
    concurrency = str(system.web[0].settings.worker_concurrency)
    wanted = re.sub(r"\$\{ARKLOOP_WORKER_CONCURRENCY:-\d+\}", concurrency, lines["worker"])

    assert shlex.split(wanted) == ["python", *CELERY[1:]]
    assert shlex.split(lines["web"]) == GUNICORN[2:]
    assert CELERY[1:] == system.worker.first_command[1:]
    for server in system.web:
        assert GUNICORN[1:] == psutil.Process(server.pid).cmdline()[1:]
