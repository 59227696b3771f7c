"""`arkloop agents serve` in processes of its own, and what becomes of runs when they are lost."""

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from arkloop.agents import UNKNOWN_OUTCOME
from tests.caller import Caller, data_of, script, text_of, types
from tests.cli.command import Arkloop
from tests.waiting import eventually

pytestmark = pytest.mark.processes

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}}
AGENTS = Path(__file__).with_name("desk_agents.py")


@dataclass(frozen=True)
class Desk:
    """A place where agents are served; `steps` is what they wrote down."""

    user: Caller
    arkloop: Arkloop
    steps: Path
    stack: ExitStack

    def worker(self, function: str, *options: str) -> subprocess.Popen[bytes]:
        command = ("agents", "serve", f"desk_agents:{function}", *options)
        return self.stack.enter_context(self.arkloop.started(*command))

    def run(
        self, function: str, content: str | list[dict[str, Any]] = "0", **persona: object
    ) -> str:
        """Start a run of a persona of its own with this agent."""
        key = f"{function}-{self.arkloop.folder.name}"[:60]
        self.user.made("/v1/personas", {"key": key, "agent": function, **persona})
        return self.user.start(self.user.thread(content), persona_id=key, end_user_id="zoe")

    def until(self, step: str) -> None:
        eventually(lambda: self.steps.exists() and step in self.steps.read_text())

    def lines(self) -> list[str]:
        return self.steps.read_text().splitlines()


@pytest.fixture
def desk(user: Caller, arkloop: Arkloop, tmp_path: Path) -> Iterator[Desk]:
    shutil.copy(AGENTS, tmp_path)
    key = user.api_key(scopes=["agents.work"])[1]
    steps = tmp_path / "steps"
    with ExitStack() as stack:
        yield Desk(user, arkloop.with_(ARKLOOP_API_KEY=key, STEPS=str(steps)), steps, stack)


def test_a_run_has_the_events_of_any_other(desk: Desk) -> None:
    """What the agent does is the run's stream: text, a turn with its call, its cost, the answer."""
    desk.worker("looker")

    run_id = desk.run("looker")
    events = desk.user.events(run_id)

    assert list(range(1, len(events) + 1)) == [event["seq"] for event in events]
    kinds = [kind for kind in types(events) if kind != "message.delta"]
    assert [
        *("run.started", "message.thinking", "message.completed", "tool.call", "tool.result"),
        *("run.cost", "message.completed", "run.completed"),
    ] == kinds
    assert "Let me see.There are 7 for zoe." == text_of(events)
    turns = data_of(events, "message.completed")
    assert [0, 10] == [turn["usage"]["input_tokens"] for turn in turns]
    run = desk.user.get_run(run_id)
    assert ("There are 7 for zoe.", 0.25) == (run["output"], run["cost_usd"])


def test_a_killed_worker_is_succeeded_from_its_checkpoint(desk: Desk) -> None:
    """After kill -9 another worker continues after the last step: none twice, no number missing."""
    lost = desk.worker("stepper")
    run_id = desk.run("stepper")
    desk.until("in the middle")

    lost.kill()
    desk.worker("stepper")
    events = desk.user.events(run_id)

    assert "did [0, 1, 2]" == desk.user.get_run(run_id)["output"]
    assert ["do 0", "do 1", "in the middle", "do 2"] == desk.lines()
    assert list(range(1, len(events) + 1)) == [event["seq"] for event in events]
    assert [0, 1, 2] == [data["arguments"]["n"] for data in data_of(events, "tool.call")]
    assert "lost text" not in text_of(events)
    assert [("worker_lost", 2)] == [
        (data["reason"], data["attempt"]) for data in data_of(events, "run.resumed")
    ]


def test_an_agent_that_had_said_all_does_not_say_it_again(desk: Desk) -> None:
    """Its worker is killed after the last checkpoint, and the next call of it just returns."""
    lost = desk.worker("finisher")
    run_id = desk.run("finisher")
    desk.until("said")

    lost.kill()
    desk.worker("finisher")
    events = desk.user.events(run_id)

    assert ["All of it."] == [data["content"] for data in data_of(events, "message.completed")]
    assert "All of it." == text_of(events) == desk.user.get_run(run_id)["output"]


def test_a_step_that_may_be_repeated_is_repeated_after_text(desk: Desk) -> None:
    """Text before it does not end a call that the lost worker had begun."""
    lost = desk.worker("sayer")
    run_id = desk.run("sayer")
    desk.until("looks")

    lost.kill()
    desk.worker("sayer")
    events = desk.user.events(run_id)

    assert "found" == desk.user.get_run(run_id)["output"]
    assert ["found"] == [data["output"] for data in data_of(events, "tool.result")]
    assert ["looks", "looks"] == desk.lines()


def test_a_step_before_long_outputs_is_not_made_again(desk: Desk) -> None:
    """A worker that gets a run with more than 8 MiB of outputs knows all its calls."""
    desk.worker("collector")
    run_id = desk.run("collector", max_steps=256)
    desk.user.until(run_id, "status", "waiting_for_input")

    assert 200 == desk.user.answer(run_id, "yes").status_code

    assert "paid, yes" == desk.user.ended(run_id)["output"]
    assert ["pays"] == desk.lines()


def test_people_approve_calls_of_a_served_agent(desk: Desk) -> None:
    """Each approval is for one call: one is made with other arguments, one is not made."""
    desk.worker("payer")
    run_id = desk.run("payer")
    for answer in ('{"decision": "edit", "arguments": {"amount": 1}}', "no, too much"):
        asked = desk.user.until(run_id, "status", "waiting_for_input")["pending_input"]
        assert ("tool_confirmation", "pay") == (asked["kind"], asked["tool_name"])
        given = {"content": answer, "request_id": asked["request_id"]}
        desk.user.http.post(f"/v1/runs/{run_id}/input", json=given).raise_for_status()

    events = desk.user.events(run_id)

    assert ["pays {'amount': 1}"] == desk.lines()
    results = [(data["tool_call_id"], data["is_error"]) for data in data_of(events, "tool.result")]
    assert [("pay-6", True), ("pay-5", False)] == results
    assert [5, 6] == [data["arguments"]["amount"] for data in data_of(events, "tool.call")]
    assert "None, The call was denied: no, too much" == desk.user.get_run(run_id)["output"]


def test_an_approved_call_in_which_its_worker_is_killed_is_not_made_again(desk: Desk) -> None:
    """Its event is older than its beginning, which the service has noted before the effect."""
    lost = desk.worker("hanging_payer")
    run_id = desk.run("hanging_payer")
    desk.user.until(run_id, "status", "waiting_for_input")
    desk.user.http.post(f"/v1/runs/{run_id}/input", json={"content": "yes"}).raise_for_status()
    desk.until("pays")

    lost.kill()
    desk.worker("hanging_payer")
    events = desk.user.events(run_id)

    assert ["pays"] == desk.lines()
    [result] = data_of(events, "tool.result")
    assert result["is_error"]
    assert UNKNOWN_OUTCOME == result["output"] == desk.user.get_run(run_id)["output"]


def test_a_frozen_worker_never_writes_again(desk: Desk) -> None:
    """A worker that is stopped for two leases loses its run, and finds its late writes refused."""
    frozen = desk.worker("resting")
    run_id = desk.run("resting")
    desk.until("rests")
    frozen.send_signal(signal.SIGSTOP)

    desk.worker("resting")
    events = desk.user.events(run_id)
    frozen.send_signal(signal.SIGCONT)
    frozen.send_signal(signal.SIGTERM)
    frozen.wait(60)

    assert "rested True" == desk.user.get_run(run_id)["output"]
    assert events == desk.user.events_so_far(run_id)


def test_a_stopping_worker_hands_its_runs_over(desk: Desk) -> None:
    """After SIGTERM a run goes to another worker at its next checkpoint, as at a deploy."""
    stopping = desk.worker("resting")
    run_id = desk.run("resting")
    desk.until("rests")

    stopping.send_signal(signal.SIGTERM)

    assert 0 == stopping.wait(60)
    desk.worker("resting")
    events = desk.user.events(run_id)
    assert ["deploy"] == [data["reason"] for data in data_of(events, "run.resumed")]
    assert "rested True" == desk.user.get_run(run_id)["output"]


@pytest.mark.parametrize(
    ("function", "line"),
    [
        *((name, "cancelled") for name in ("waiter", "decorated_waiter")),
        ("sleeper", "stopped: cancelled"),
    ],
)
def test_a_cancel_reaches_the_agent(desk: Desk, function: str, line: str) -> None:
    """A coroutine is cancelled, a function's next call raises; then the run is cancelled."""
    desk.worker(function)
    run_id = desk.run(function, "60")
    desk.until("waits")

    desk.user.cancel(run_id)

    assert "cancelled" == desk.user.ended(run_id)["status"]
    desk.until(line)


def test_a_call_that_was_in_progress_at_the_cancel_is_paid_for(desk: Desk) -> None:
    """Its vendor bills it, and the agent reports it as it learns that it has to stop."""
    desk.worker("caller")
    run_id = desk.run("caller")
    desk.until("calls")

    desk.user.cancel(run_id)
    run = desk.user.ended(run_id)

    assert ("cancelled", 0.3, 3) == (run["status"], run["cost_usd"], run["usage"]["input_tokens"])


def test_an_agent_reads_the_files_of_its_messages(desk: Desk) -> None:
    """Its worker's key may do nothing else."""
    desk.worker("reader")
    form = {"file": ("notes.txt", b"At noon.")}
    file = desk.user.http.post("/v1/files", files=form).raise_for_status().json()
    parts = [{"type": "text", "text": "When?"}, {"type": "file", "file_id": file["id"]}]

    run_id = desk.run("reader", parts)

    assert "notes.txt: At noon." == desk.user.ended(run_id)["output"]


def test_questions_are_answered_between_two_executions(desk: Desk) -> None:
    """An agent that asks is called again from its beginning, with the answers so far."""
    desk.worker("asker")
    run_id = desk.run("asker")

    for content in ("Ann", "blue"):
        desk.user.until(run_id, "status", "waiting_for_input")
        assert 200 == desk.user.answer(run_id, content).status_code
        desk.user.until(run_id, "status", "running", "waiting_for_input", "completed")

    assert "Ann likes blue" == desk.user.ended(run_id)["output"]


def test_sub_runs_are_executed_between_executions(desk: Desk) -> None:
    """An agent that gives out tasks is called again from its beginning, with their results."""
    desk.worker("editor")
    tasks = [script({"say": "one", "delay_ms": 200}), script({"error": "invalid_request"})]

    run_id = desk.run("editor", json.dumps(tasks), delegates=["plain"], max_cost_usd=1)
    run = desk.user.ended(run_id)

    events = desk.user.events(run_id)
    assert run["output"].startswith("Both parts. one, The sub-run failed: ")
    assert run["output"].endswith(", one")
    assert "done [False, True]" in desk.lines()
    results = data_of(events, "tool.result")
    assert ["part-0", "part-1", "last"] == [one["tool_call_id"] for one in results]
    assert 3 == len(desk.user.get("/v1/runs", parent_run_id=run_id))
    assert ["sub_runs", "sub_runs"] == [e["reason"] for e in data_of(events, "run.resumed")]


@pytest.mark.parametrize(
    ("function", "code", "message"),
    [
        ("failing", "agent.failed", "The agent failed: ValueError."),
        ("misnaming", "agent.failed", "The agent failed: InvalidCallId. The id of a call has 1 to"),
        ("mispriced", "budget.exhausted", "'nobody-knows-it', whose price is not known"),
        ("refused", "agent.failed", "The agent failed: The request is not valid; see `details`."),
        ("misfit", "output.invalid", "property 'n': the value is not of type \"integer\""),
        ("greedy", "budget.exhausted", "may exceed the budget of a run of the persona"),
    ],
)
def test_a_run_that_fails_says_why(desk: Desk, function: str, code: str, message: str) -> None:
    """An exception is shown by its class alone, unless it is a refusal of the service."""
    desk.worker(function)

    persona = {"output_schema": NUMBER} if function == "misfit" else {}

    run = desk.user.ended(desk.run(function, max_cost_usd=1, on_limit="fail", **persona))

    assert ("failed", code) == (run["status"], run["error"]["code"])
    assert message in run["error"]["message"]


def test_what_cannot_be_served_is_said(desk: Desk) -> None:
    """A function that is none, and a key without the scope, end the command with a message."""
    nothing = desk.arkloop("agents", "serve", "desk_agents:nothing")
    main = desk.arkloop("agents", "serve", "desk_agents:main", "--agent", "asker")
    pieces = desk.arkloop("agents", "serve", "desk_agents:pieces", "--agent", "asker")
    other = desk.arkloop.with_(ARKLOOP_API_KEY=desk.user.api_key(scopes=["data.runs.read"])[1])
    refused = other("agents", "serve", "desk_agents:asker")

    assert (1, True) == (nothing.returncode, b"no function 'nothing'" in nothing.stderr)
    assert (1, True) == (main.returncode, b"'main' must accept the arguments (run)" in main.stderr)
    assert (1, True) == (pieces.returncode, b"must not be a generator" in pieces.stderr)
    assert (1, True) == (refused.returncode, b"lacks the scope `agents.work`" in refused.stderr)


def test_calls_that_were_recorded_before_a_question_are_made_after_it(desk: Desk) -> None:
    """The one that has asked is made again with the answer; the other one had not begun."""
    desk.worker("confirmer")
    run_id = desk.run("confirmer")
    desk.user.seen(run_id, "run.waiting_for_input", 1)
    eventually(lambda: desk.user.answer(run_id, "yes").status_code == 200)

    events = desk.user.events(run_id)

    assert "yes, yes" == desk.user.get_run(run_id)["output"]
    assert ["pays 1: yes", "pays 2: yes"] == desk.lines()
    assert [False, False] == [data["is_error"] for data in data_of(events, "tool.result")]
