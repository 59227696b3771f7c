"""Runs that a custom agent of an installed package carries out."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import insert, text

from arkloop.shared.billing import budget_limits
from arkloop.shared.catalog import model_routes
from arkloop.shared.errors import LeaseLost
from arkloop.shared.events.event_log import data_of
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.runs import agent_checkpoints
from arkloop.worker.attempt import execution
from arkloop.worker.contract.outcomes import ShuttingDown
from arkloop.worker.process.process import WorkerProcess
from tests.caller import text_of
from tests.stored_runs import StoredRuns
from tests.waiting import eventually
from tests.worker.attempt.agent_runs import LOST, created, data, follow_up, process, stopped

__all__ = ["process"]  # a fixture

OBJECT = {"output_schema": {"type": "object", "properties": {"n": {"type": "integer"}}}}


def test_an_agent_writes_the_events_of_a_run(stored: StoredRuns, process: WorkerProcess) -> None:
    """Text, calls, results and costs become the events that the loop would write."""
    run_id = created(
        stored,
        {"thinking": "hm"},
        {"text": "Look: "},
        {"tokens": 1_000_000},
        {"call": "one", "id": "a", "arguments": {"x": [1]}},
        {"call": "two", "id": "b"},
        {"result": "1", "id": "a"},
        {"result": "no", "id": "b", "is_error": True},
        {"text": "It is 1."},
    )

    execution.execute(process, run_id)

    assert RunState.COMPLETED == stored.state(run_id)
    assert [
        *("run.started", "message.thinking", "message.delta", "run.cost", "message.completed"),
        *("tool.call", "tool.call", "tool.result", "tool.result"),
        *("message.delta", "message.completed", "run.completed"),
    ] == stored.types(run_id)
    turns = data(stored, run_id, "message.completed")
    assert ["Look: ", "It is 1."] == [turn["content"] for turn in turns]
    assert [1_000_000, 0] == [turn["usage"]["input_tokens"] for turn in turns]
    calls = data(stored, run_id, "tool.call")
    assert [("a", {"x": [1]}), ("b", {})] == [(c["tool_call_id"], c["arguments"]) for c in calls]
    results = data(stored, run_id, "tool.result")
    assert [("1", False), ("no", True)] == [(r["output"], r["is_error"]) for r in results]
    assert [("It is 1.", False)] == stored.messages(run_id)
    row = stored.row(run_id)
    assert (2, 1_000_000) == (row["steps"], row["input_tokens"])
    price = model_routes.load(process.settings)["scripted"].prices
    assert price is not None
    assert price.input == row["cost_usd"]


@pytest.mark.parametrize(
    ("said", "returned"), [([], "Hi."), (["Hi", "."], None), (["Hi"], "Hi."), (["No"], "Hi.")]
)
def test_the_answer_is_what_it_returns(
    stored: StoredRuns, process: WorkerProcess, said: list[str], returned: str | None
) -> None:
    """The text that is returned is the answer, and what was streamed is completed or void."""
    run_id = created(stored, *({"text": text} for text in said), {"return": returned})

    execution.execute(process, run_id)

    assert [("Hi.", False)] == stored.messages(run_id)
    assert "Hi." == text_of([json.loads(event.payload) for event in stored.events(run_id)])


def test_an_agent_knows_on_whose_behalf_it_runs(stored: StoredRuns, process: WorkerProcess) -> None:
    """The code of the agent reads the ids of its run, its end user and its metadata."""
    run_id = created(stored, {"say_identity": True})
    stored.set(run_id, end_user_id="eve", metadata={"a": "b"})

    execution.execute(process, run_id)

    [(said, _)] = stored.messages(run_id)
    assert [str(run_id), "eve", {"a": "b"}, 1] == json.loads(said)


def test_a_lost_run_continues_from_its_checkpoint(
    stored: StoredRuns, process: WorkerProcess, tmp_path: Path
) -> None:
    """Finished text stays, text after the checkpoint is void, and a step is not repeated."""
    lines = tmp_path / "lines"
    run_id = created(
        stored,
        {"text": "Part one."},
        {"checkpoint": True},
        {"text": "Part two, "},
        {"append": "once", "id": "a", "path": str(lines)},
        {"text": "half"},
        {"wait": 30, "attempts": 1},
        {"text": " of it."},
    )
    stopped(process, stored, run_id, LeaseLost(), after=("message.delta", 3))
    stored.set(run_id, **LOST)

    execution.execute(process, run_id)

    assert "once\n" == lines.read_text()
    types = stored.types(run_id)
    assert 1 == types.count("tool.result") == types.count("tool.call")
    [reset] = data(stored, run_id, "message.reset")
    assert "half" == data_of(stored.events(run_id)[reset["from_seq"] - 1].payload)["content"]
    turns = data(stored, run_id, "message.completed")
    assert ["Part one.", "Part two, ", "Part two, half of it."] == [t["content"] for t in turns]


@contextmanager
def no_checkpoints(stored: StoredRuns, run_id: UUID) -> Iterator[None]:
    """Keep a worker that stores a checkpoint of the run waiting until the block ends."""
    with stored.connections.transaction() as tx:
        of_another = {"run_id": run_id, "fence": 0, "data": "0"}
        tx.sql.execute(insert(agent_checkpoints).values(of_another))
        yield
        tx.sql.rollback()


def a_checkpoint_waits(stored: StoredRuns) -> bool:
    """Return whether a worker waits for a lock to store one."""
    waiting = """
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'
            AND query LIKE 'INSERT INTO agent_checkpoints%'
        """
    with stored.connections.reading() as sql:
        return bool(sql.scalar(text(waiting)))


def test_text_is_said_when_its_checkpoint_is_stored(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """Both are one transaction: a worker that ends between them would say the text again."""
    run_id = created(stored, {"text": "One."}, {"checkpoint": True}, {"text": "Two."})
    attempt = threading.Thread(target=execution.execute, args=(process, run_id))
    with no_checkpoints(stored, run_id):
        attempt.start()
        eventually(lambda: a_checkpoint_waits(stored))
        assert ["run.started", "message.delta"] == stored.types(run_id)
    attempt.join(20)

    assert RunState.COMPLETED == stored.state(run_id)
    turns = data(stored, run_id, "message.completed")
    assert ["One.", "Two."] == [turn["content"] for turn in turns]
    assert list(range(1, len(stored.events(run_id)) + 1)) == [e.seq for e in stored.events(run_id)]
    assert 2 == stored.row(run_id)["steps"]


def test_a_checkpoint_that_a_deploy_interrupts_is_progress(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """It is stored, and the crashes of the run are counted anew from there."""
    run_id = created(stored, {"text": "One."}, {"checkpoint": True}, {"text": "Two."})
    stored.set(run_id, crashes=1)
    attempt = threading.Thread(target=execution.execute, args=(process, run_id))
    with no_checkpoints(stored, run_id):
        attempt.start()
        eventually(lambda: a_checkpoint_waits(stored))
        process.active_runs()[run_id].set(ShuttingDown())
    attempt.join(20)

    row = stored.row(run_id)
    assert (RunState.QUEUED, "deploy", 0) == (row["state"], row["resume_reason"], row["crashes"])


@pytest.mark.parametrize("returned", [None, "All."])
def test_an_agent_that_had_said_all_does_not_say_it_again(
    stored: StoredRuns, process: WorkerProcess, returned: str | None
) -> None:
    """Its worker is lost after the last checkpoint, and the next call of it just returns."""
    wait = {"wait": 30, "attempts": 1}
    run_id = created(stored, {"text": "All."}, {"checkpoint": True}, wait, {"return": returned})
    stopped(process, stored, run_id, LeaseLost(), after=("message.completed", 1))
    stored.set(run_id, **LOST)

    execution.execute(process, run_id)

    assert [("All.", False)] == stored.messages(run_id)
    assert ["All."] == [turn["content"] for turn in data(stored, run_id, "message.completed")]
    assert RunState.COMPLETED == stored.state(run_id)


@pytest.mark.parametrize(("idempotent", "times"), [(False, 1), (True, 2)])
def test_a_step_during_which_its_process_is_lost(
    stored: StoredRuns, process: WorkerProcess, tmp_path: Path, idempotent: bool, times: int
) -> None:
    """Its outcome is reported as unknown, unless it may be repeated."""
    lines, gate = tmp_path / "lines", tmp_path / "gate"
    step = {"append": "x", "id": "a", "path": str(lines), "gate": str(gate)}
    run_id = created(stored, {"text": "Now: "}, {**step, "idempotent": idempotent})
    attempt = threading.Thread(target=execution.execute, args=(process, run_id))
    attempt.start()
    eventually(lines.exists)
    process.active_runs()[run_id].set(LeaseLost())
    attempt.join(20)
    stored.set(run_id, **LOST)
    gate.touch()

    execution.execute(process, run_id)

    assert RunState.COMPLETED == stored.state(run_id)
    assert "x\n" * times == lines.read_text()
    [result] = data(stored, run_id, "tool.result")
    assert (not idempotent) == result["is_error"] == ("unknown" in result["output"])


@pytest.mark.parametrize("agent", ["script", "async_script", "decorated_script"])
def test_a_question_parks_the_run(stored: StoredRuns, process: WorkerProcess, agent: str) -> None:
    """After the answer the agent is called again, and asks as if it had been there all along."""
    asks = [{"ask": "Blue?", "options": ["yes", "no"]}, {"ask": "Sure?", "key": "k"}]
    run_id = created(stored, *asks, agent=agent)
    execution.execute(process, run_id)
    assert RunState.WAITING == stored.state(run_id)
    stored.answer(run_id, "yes")
    execution.execute(process, run_id)
    stored.answer(run_id, ", I am")

    execution.execute(process, run_id)

    assert [("yes, I am", False)] == stored.messages(run_id)
    first, second = data(stored, run_id, "run.waiting_for_input")
    assert ("question", "Blue?", ["yes", "no"]) == tuple(
        first[n] for n in ("kind", "prompt", "options")
    )
    assert "k" == second["tool_call_id"]
    later = follow_up(stored, process, run_id)
    assert RunState.COMPLETED == stored.state(later)


@pytest.mark.parametrize("agent", ["script", "async_script", "decorated_script"])
@pytest.mark.parametrize("last", [{"wait": 30}, {"hang": 30}, {"swallow": 30}])
def test_cancel_reaches_the_agent(
    stored: StoredRuns, process: WorkerProcess, agent: str, last: dict[str, Any]
) -> None:
    """A cancelled run ends, whether its agent waits, blocks or ignores it; its text is kept."""
    run_id = created(stored, {"text": "A part"}, last, {"text": "more"}, agent=agent)
    attempt = threading.Thread(target=execution.execute, args=(process, run_id))
    attempt.start()
    eventually(lambda: "message.delta" in stored.types(run_id))

    stored.cancel(run_id)
    attempt.join(20)

    assert RunState.CANCELLED == stored.state(run_id)
    assert [("A part", True)] == stored.messages(run_id)


def test_a_stopping_process_hands_the_run_over(
    stored: StoredRuns, process: WorkerProcess, tmp_path: Path
) -> None:
    """A deploy stops the agent where it is; another worker calls it from its checkpoint on."""
    gate = tmp_path / "gate"
    run_id = created(stored, {"text": "One."}, {"until": str(gate)}, {"text": "Two."})
    stopped(process, stored, run_id, ShuttingDown(), after=("message.completed", 1))
    assert RunState.QUEUED == stored.state(run_id)
    gate.touch()

    execution.execute(process, run_id)

    assert RunState.COMPLETED == stored.state(run_id)
    assert 1 == stored.row(run_id)["attempt"]
    turns = data(stored, run_id, "message.completed")
    assert ["One.", "Two."] == [turn["content"] for turn in turns]


@pytest.mark.parametrize(
    ("fields", "state", "reason"),
    [({}, RunState.COMPLETED, "budget"), ({"on_limit": "fail"}, RunState.FAILED, None)],
)
def test_a_run_over_its_budget_ends(
    stored: StoredRuns, process: WorkerProcess, fields: dict[str, Any], state: str, reason: str
) -> None:
    """A reported cost counts although it is over the budget, and nothing follows it."""
    steps = [{"text": "So far"}, {"usd": 0.4, "input_tokens": 3}, {"usd": 0.7}, {"text": "more"}]
    run_id = created(stored, *steps, max_cost_usd=1.0, **fields)

    execution.execute(process, run_id)

    row = stored.row(run_id)
    assert (state, reason, Decimal("1.1"), 3) == (
        row["state"],
        row["stop_reason"],
        row["cost_usd"],
        row["input_tokens"],
    )
    assert [("So far", state == RunState.FAILED)] == stored.messages(run_id)
    if state == RunState.FAILED:
        assert "budget.exhausted" == row["error_code"]


def test_a_reservation_keeps_an_agent_within_a_budget(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """What the next call may cost at most has to fit; what it cost counts for the org's month."""
    with stored.connections.transaction() as tx:
        month = {"max_cost_usd": None, "max_cost_usd_per_month": Decimal(1)}
        budget_limits.set_(tx, stored.actor.org_id, "org", **month)
    steps = [{"reserve": 0.6}, {"usd": 0.5}, {"reserve": 0.6}, {"usd": 0.5}]
    run_id = created(stored, *steps, on_limit="fail")

    execution.execute(process, run_id)

    row = stored.row(run_id)
    assert ("budget.exhausted", Decimal("0.5")) == (row["error_code"], row["cost_usd"])


@pytest.mark.parametrize(
    ("steps", "fields", "code", "message"),
    [
        ([{"raise": "a secret"}], {}, "agent.failed", "The agent failed: ValueError."),
        ([{"return": 1}], {}, "agent.failed", "The agent returned int, not text."),
        ([{"return_no_json": 1}], OBJECT, "agent.failed", "not JSON: Object of type set is not"),
        ([{"return": "\ud800"}], OBJECT, "output.invalid", "JSON"),
        ([{"call": "x", "id": ""}], {}, "agent.failed", "InvalidCallId. The id of a call has 1 to"),
        ([{"receive": "a"}], {}, "agent.failed", "The agent failed: error. It has used a client,"),
        ([{"await_shared": 1}], {}, "agent.failed", "The agent failed: LoopExit. It has used a"),
        ([{"usd": -1}], {}, "agent.failed", "The agent failed: ValueError."),
        ([], {"agent": "missing"}, "agent.not_found", "No agent 'missing' is installed"),
        ([{"wait": 30}], {"timeout_seconds": 1, "on_limit": "fail"}, "run.timeout", "1 s"),
        (
            [{"call": "x", "id": "a"}, {"result": "", "id": "a"}, {"call": "x", "id": "b"}],
            {"max_steps": 1, "on_limit": "fail"},
            "run.max_steps",
            "limit of 1 steps",
        ),
    ],
)
def test_a_failed_agent_fails_its_run(
    stored: StoredRuns,
    process: WorkerProcess,
    steps: list[dict[str, Any]],
    fields: dict[str, Any],
    code: str,
    message: str,
) -> None:
    """The error names the class of an exception, and never its text."""
    run_id = created(stored, *steps, **fields)

    execution.execute(process, run_id)

    row = stored.row(run_id)
    assert code == row["error_code"]
    assert message in row["error_message"]


def test_the_output_of_an_agent_fits_the_schema(stored: StoredRuns, process: WorkerProcess) -> None:
    """An object that is returned is the run's output; another one fails the run."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    good = created(stored, {"return": {"n": 1}}, output_schema=schema)
    bad = created(stored, {"return": {"n": "x"}}, output_schema=schema)

    for run_id in (good, bad):
        execution.execute(process, run_id)

    [completed] = data(stored, good, "run.completed")
    assert {"n": 1} == completed["output"]
    assert "output.invalid" == stored.row(bad)["error_code"]


def test_an_output_may_have_nul(stored: StoredRuns, process: WorkerProcess) -> None:
    """It is stored as U+FFFD, and an escaped backslash before `u0000` is none."""
    run_id = created(stored, {"return": {"n": 1, "\0": "\0\\u0000"}}, **OBJECT)

    execution.execute(process, run_id)

    [completed] = data(stored, run_id, "run.completed")
    assert {"n": 1, "\ufffd": "\ufffd\\u0000"} == completed["output"]


def test_another_run_of_the_thread_reads_what_an_agent_did(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """The built-in loop continues a thread in which an agent called tools and answered."""
    steps = [{"call": "x", "id": "a"}, {"result": "1", "id": "a"}, {"text": "One."}]
    run_id = created(stored, *steps)
    execution.execute(process, run_id)

    later = follow_up(stored, process, run_id)

    assert RunState.COMPLETED == stored.state(later)
