"""Tool calls that a custom agent announces: their steps, their approval, and their results."""

import threading
from pathlib import Path
from typing import Any

import pytest

from arkloop.shared.errors import LeaseLost
from arkloop.shared.runs.states import RunState
from arkloop.worker.attempt import execution
from arkloop.worker.contract.outcomes import ShuttingDown
from arkloop.worker.process.process import WorkerProcess
from tests.stored_runs import StoredRuns
from tests.waiting import eventually
from tests.worker.attempt.agent_runs import LOST, created, data, process, stopped

__all__ = ["process"]  # a fixture


def announced(id_: str) -> dict[str, Any]:
    return {"call": "append", "id": id_, "arguments": {"line": id_}}


def test_a_step_makes_a_call_that_was_announced(
    stored: StoredRuns, process: WorkerProcess, tmp_path: Path
) -> None:
    """Calls of one turn are recorded together, and then made one by one."""
    path = str(tmp_path / "lines")
    calls = [announced(id_) for id_ in ("a", "b")]
    steps = [{"append": id_, "id": id_, "path": path} for id_ in ("a", "b", "a")]
    run_id = created(stored, *calls, *steps)

    execution.execute(process, run_id)

    assert "a\nb\n" == Path(path).read_text()
    assert 2 == stored.types(run_id).count("tool.call") == stored.types(run_id).count("tool.result")
    assert 2 == stored.types(run_id).count("message.completed")


@pytest.mark.parametrize("first", [announced("a"), {"append": "a", "id": "a"}])
def test_an_id_is_that_of_one_call(
    stored: StoredRuns, process: WorkerProcess, tmp_path: Path, first: dict[str, Any]
) -> None:
    """Another call under it fails the run: the agent would take the first one's result for its."""
    path = str(tmp_path / "lines")
    run_id = created(stored, {**first, "path": path}, {"append": "b", "id": "a", "path": path})

    execution.execute(process, run_id)

    assert "The agent failed: ValueError." == stored.row(run_id)["error_message"]
    assert not Path(path).exists() or "a\n" == Path(path).read_text()


def test_a_call_without_a_result_is_settled_when_the_agent_goes_another_way(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """A later turn does not leave a call of a lost execution without a result."""
    run_id = created(
        stored,
        *({"call": "pay", "id": "a"}, {"checkpoint": True}),
        *({"wait": 30, "attempts": 1}, {"text": "Well."}),
    )
    stopped(process, stored, run_id, LeaseLost(), after=("tool.call", 1))
    stored.set(run_id, **LOST)

    execution.execute(process, run_id)

    [result] = data(stored, run_id, "tool.result")
    assert result["is_error"]
    assert [("Well.", False)] == stored.messages(run_id)


def test_a_call_that_no_step_makes_has_a_result_at_the_end(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """A framework's own call, such as a handoff, is not left open."""
    run_id = created(stored, announced("a"), {"text": "Well."})

    execution.execute(process, run_id)

    [result] = data(stored, run_id, "tool.result")
    assert ("a", "The agent ended without a result of this call.") == (
        *(result[name] for name in ("tool_call_id", "output")),
    )
    assert [("Well.", False)] == stored.messages(run_id)


def test_a_person_approves_a_call_of_an_agent(
    stored: StoredRuns, process: WorkerProcess, tmp_path: Path
) -> None:
    """The request is one for approval, as the loop makes it, and the call is made as edited."""
    lines = tmp_path / "lines"
    run_id = created(stored, {"approve": "x", "id": "a", "path": str(lines)})
    execution.execute(process, run_id)
    pending = stored.row(run_id)["pending_input"]
    assert ("append", {"line": "x"}) == (pending["tool_name"], pending["arguments"])
    stored.answer(run_id, '{"decision": "edit", "arguments": {"line": "y"}}')

    execution.execute(process, run_id)

    assert "y\n" == lines.read_text()
    assert [
        *("run.started", "message.completed", "tool.call", "run.waiting_for_input"),
        *("run.resumed", "run.input_received", "tool.result"),
        *("message.completed", "run.completed"),
    ] == [kind for kind in stored.types(run_id) if kind != "message.delta"]
    [asked] = data(stored, run_id, "run.waiting_for_input")
    assert ("tool_confirmation", "a", "Allow the call of append?", ["approve", "deny", "edit"]) == (
        *(asked[name] for name in ("kind", "tool_call_id", "prompt", "options")),
    )


def test_a_denied_call_of_an_agent_is_not_made(
    stored: StoredRuns, process: WorkerProcess, tmp_path: Path
) -> None:
    """Its result says so, a step of its id returns that, and an unclear reply is asked about."""
    lines = tmp_path / "lines"
    run_id = created(stored, {"approve": "x", "id": "a", "path": str(lines)})
    execution.execute(process, run_id)
    stored.answer(run_id, "whatever")
    execution.execute(process, run_id)
    assert 2 == stored.types(run_id).count("run.waiting_for_input")
    stored.answer(run_id, "no, never")

    execution.execute(process, run_id)

    assert RunState.COMPLETED == stored.state(run_id)
    assert not lines.exists()
    [result] = data(stored, run_id, "tool.result")
    assert ("The call was denied: no, never", True) == (result["output"], result["is_error"])
    assert 1 == stored.types(run_id).count("tool.call")


@pytest.mark.parametrize("is_announced", [False, True])
def test_calls_that_are_approved_one_by_one_are_of_one_turn(
    stored: StoredRuns, process: WorkerProcess, tmp_path: Path, is_announced: bool
) -> None:
    """An approval does not get lost while a person is asked about the next call; all of them may
    be recorded before.
    """
    path = str(tmp_path / "lines")
    first = [announced(id_) for id_ in ("a", "b") if is_announced]
    asks = [{"approve": id_, "id": id_, "path": path, "later": True} for id_ in ("a", "b")]
    steps = [{"append": id_, "id": id_, "path": path} for id_ in ("a", "b")]
    run_id = created(stored, *first, *asks, *steps)
    execution.execute(process, run_id)
    stored.answer(run_id, "yes")
    execution.execute(process, run_id)
    stored.answer(run_id, "ok")

    execution.execute(process, run_id)

    assert "a\nb\n" == Path(path).read_text()
    assert 2 == stored.types(run_id).count("tool.call")
    assert 2 == stored.types(run_id).count("message.completed")


def test_an_approved_call_that_was_lost_is_not_made_again(
    stored: StoredRuns, process: WorkerProcess, tmp_path: Path
) -> None:
    """Its approval is older than its beginning, which the ledger has: its outcome is unknown."""
    lines, gate = tmp_path / "lines", tmp_path / "gate"
    run_id = created(stored, {"approve": "x", "id": "a", "path": str(lines), "gate": str(gate)})
    execution.execute(process, run_id)
    stored.answer(run_id, "yes")
    attempt = threading.Thread(target=execution.execute, args=(process, run_id))
    attempt.start()
    eventually(lines.exists)
    process.active_runs()[run_id].set(LeaseLost())
    attempt.join(20)
    stored.set(run_id, **LOST)
    gate.touch()

    execution.execute(process, run_id)

    assert RunState.COMPLETED == stored.state(run_id)
    assert "x\n" == lines.read_text()
    [result] = data(stored, run_id, "tool.result")
    assert "unknown" in result["output"]


def test_an_approved_call_that_the_agent_does_not_make_has_a_result(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """The answer of an agent that goes another way leaves no call open."""
    run_id = created(stored, {"approve": "x", "id": "a", "later": True}, {"text": "Well."})
    execution.execute(process, run_id)
    stored.answer(run_id, "yes")

    execution.execute(process, run_id)

    [result] = data(stored, run_id, "tool.result")
    assert result["output"].startswith("Not executed")
    assert [("Well.", False)] == stored.messages(run_id)


def test_a_call_that_is_made_again_is_not_settled_meanwhile(
    stored: StoredRuns, process: WorkerProcess, tmp_path: Path
) -> None:
    """A further call begins while it is in progress, and its result is that of its repetition."""
    lines, gate = tmp_path / "lines", tmp_path / "gate"
    within = {"append": "y", "id": "b", "path": str(lines)}
    again = {"idempotent": True, "path": str(lines), "gate": str(gate), "within": within}
    run_id = created(stored, {"append": "x", "id": "a", **again})
    attempt = threading.Thread(target=execution.execute, args=(process, run_id))
    attempt.start()
    eventually(lines.exists)
    process.active_runs()[run_id].set(LeaseLost())
    attempt.join(20)
    stored.set(run_id, **LOST)
    gate.touch()

    execution.execute(process, run_id)

    assert RunState.COMPLETED == stored.state(run_id)
    assert "x\nx\ny\n" == lines.read_text()
    results = data(stored, run_id, "tool.result")
    assert [("b", "appended y"), ("a", "appended x")] == [
        (result["tool_call_id"], result["output"]) for result in results
    ]


def test_calls_that_are_recorded_before_a_question_are_made_after_it(
    stored: StoredRuns, process: WorkerProcess, tmp_path: Path
) -> None:
    """No step had begun them, so they are neither lost nor made before the answer."""
    path = str(tmp_path / "lines")
    calls = [announced(id_) for id_ in ("a", "b")]
    steps = [{"append": id_, "id": id_, "path": path} for id_ in ("a", "b")]
    run_id = created(stored, *calls, {"ask": "Go?"}, steps[0], {"ask": "On?"}, steps[1])
    execution.execute(process, run_id)
    stored.answer(run_id, "yes")
    execution.execute(process, run_id)
    stored.answer(run_id, "sure")

    execution.execute(process, run_id)

    assert RunState.COMPLETED == stored.state(run_id)
    assert "a\nb\n" == Path(path).read_text()
    assert ["appended a", "appended b"] == [
        result["output"] for result in data(stored, run_id, "tool.result")
    ]
    assert 2 == stored.types(run_id).count("tool.call")


def test_a_step_that_asks_is_made_again_with_the_answer(
    stored: StoredRuns, process: WorkerProcess, tmp_path: Path
) -> None:
    """Its function had not returned; the other calls of its turn are made once."""
    path = str(tmp_path / "lines")
    asking = {"append": "a", "id": "a", "path": path, "ask": "Go?"}
    more = {"append": "b", "id": "b", "path": path, "within": {"ask": "On?", "key": "on"}}
    run_id = created(stored, announced("b"), asking, more)
    for reply in ("yes", "sure"):
        execution.execute(process, run_id)
        stored.answer(run_id, reply)

    execution.execute(process, run_id)

    assert RunState.COMPLETED == stored.state(run_id)
    assert "a\na\nb\nb\n" == Path(path).read_text()
    assert ["a: yes", "appended b"] == [
        result["output"] for result in data(stored, run_id, "tool.result")
    ]


@pytest.mark.parametrize(("reply", "output"), [("yes", "appended x"), ("no", "denied")])
def test_a_step_that_asks_for_its_own_approval_is_made_again(
    stored: StoredRuns, process: WorkerProcess, tmp_path: Path, reply: str, output: str
) -> None:
    """It is not lost, though it was in the ledger: an earlier execution had recorded its call."""
    recorded = {"call": "append", "id": "a", "arguments": {"line": "x"}}
    approval = {"approve": "x", "id": "a", "later": True}
    step = {"append": "x", "id": "a", "path": str(tmp_path / "lines"), "within": approval}
    run_id = created(stored, recorded, {"ask": "Go?"}, step)
    for answer in ("yes", reply):
        execution.execute(process, run_id)
        stored.answer(run_id, answer)

    execution.execute(process, run_id)

    assert RunState.COMPLETED == stored.state(run_id)
    [result] = data(stored, run_id, "tool.result")
    assert output in result["output"]


def test_a_call_that_had_not_begun_at_a_deploy_is_made_afterwards(
    stored: StoredRuns, process: WorkerProcess, tmp_path: Path
) -> None:
    """The outcome of the one in progress is unknown; the one after it is made, once."""
    lines, gate = tmp_path / "lines", tmp_path / "gate"
    calls = [announced(id_) for id_ in ("a", "b")]
    made = {"path": str(lines), "gate": str(gate)}
    steps = [{"append": id_, "id": id_, **made} for id_ in ("a", "b")]
    run_id = created(stored, *calls, *steps)
    attempt = threading.Thread(target=execution.execute, args=(process, run_id))
    attempt.start()
    eventually(lines.exists)
    process.active_runs()[run_id].set(ShuttingDown())
    attempt.join(20)
    gate.touch()

    execution.execute(process, run_id)

    assert RunState.COMPLETED == stored.state(run_id)
    assert "a\nb\n" == lines.read_text()
    lost, done = data(stored, run_id, "tool.result")
    assert "unknown" in lost["output"]
    assert ("b", "appended b") == (done["tool_call_id"], done["output"])


@pytest.mark.parametrize("others", [(), (announced("b"), {"result": "", "id": "b"})])
def test_a_call_that_is_made_by_hand_at_a_deploy_is_not_made_again(
    stored: StoredRuns, process: WorkerProcess, tmp_path: Path, others: tuple[dict[str, Any], ...]
) -> None:
    """No step says that it has begun, and none that it has not: its outcome is unknown."""
    gate = tmp_path / "gate"
    gate.mkdir()
    making = {"meet": str(gate), "count": 2}
    step = {"append": "a", "id": "a", "path": str(tmp_path / "lines")}
    run_id = created(stored, *others, announced("a"), making, step)
    calls = len(others) // 2 + 1
    stopped(process, stored, run_id, ShuttingDown(), after=("tool.call", calls))
    (gate / "open").touch()

    execution.execute(process, run_id)

    assert RunState.COMPLETED == stored.state(run_id)
    assert not (tmp_path / "lines").exists()
    assert "unknown" in data(stored, run_id, "tool.result")[-1]["output"]


def test_a_call_that_begins_after_a_question_and_is_lost_is_not_made_again(
    stored: StoredRuns, process: WorkerProcess, tmp_path: Path
) -> None:
    """Its beginning is in the ledger by then; the call after it is known not to have begun."""
    lines, gate = tmp_path / "lines", tmp_path / "gate"
    calls = [announced(id_) for id_ in ("a", "b")]
    made = {"path": str(lines), "gate": str(gate)}
    steps = [{"append": id_, "id": id_, **made} for id_ in ("a", "b")]
    run_id = created(stored, *calls, {"ask": "Go?"}, *steps)
    execution.execute(process, run_id)
    stored.answer(run_id, "yes")
    attempt = threading.Thread(target=execution.execute, args=(process, run_id))
    attempt.start()
    eventually(lines.exists)
    process.active_runs()[run_id].set(LeaseLost())
    attempt.join(20)
    stored.set(run_id, **LOST)
    gate.touch()

    execution.execute(process, run_id)

    assert "a\nb\n" == lines.read_text()
    lost, done = data(stored, run_id, "tool.result")
    assert "unknown" in lost["output"]
    assert ("b", "appended b") == (done["tool_call_id"], done["output"])


def test_a_call_that_a_person_is_asked_about_is_not_left_to_be_made(
    stored: StoredRuns, process: WorkerProcess, tmp_path: Path
) -> None:
    """It had not begun at an earlier question, and is denied afterwards."""
    lines = tmp_path / "lines"
    recorded = {"call": "append", "id": "a", "arguments": {"line": "x"}}
    approved = {"approve": "x", "id": "a", "path": str(lines)}
    run_id = created(stored, recorded, {"ask": "Go?"}, approved)
    for reply in ("yes", "no"):
        execution.execute(process, run_id)
        stored.answer(run_id, reply)

    execution.execute(process, run_id)

    assert not lines.exists()
    [result] = data(stored, run_id, "tool.result")
    assert "The call was denied: no" == result["output"]
