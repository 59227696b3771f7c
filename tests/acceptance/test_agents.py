"""Custom agents in the real service: killed workers, cancels, questions, deploys and budgets."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.caller import Caller, data_of, text_of, types
from tests.system import System

pytestmark = pytest.mark.processes

AGENTS = ("script", "async_script")


@pytest.fixture(scope="module", autouse=True)
def personas(user: Caller) -> None:
    """A persona for each agent, of the same name, and one with a budget."""
    for agent in AGENTS:
        user.made("/v1/personas", {"key": agent, "agent": agent})
    user.made("/v1/personas", {"key": "thrifty", "agent": "script", "max_cost_usd": 1})


def run_of(user: Caller, *steps: dict[str, Any], persona: str = "script") -> str:
    """Start a run whose agent plays these steps."""
    return user.run(json.dumps(steps), persona_id=persona)


def test_a_killed_worker_loses_no_step_of_an_agent(
    system: System, user: Caller, tmp_path: Path
) -> None:
    """After kill -9 the agent continues from its checkpoint: no effect twice, void text named."""
    lines = tmp_path / "lines"
    run_id = run_of(
        user,
        {"text": "One. "},
        {"append": "once", "id": "a", "path": str(lines)},
        {"checkpoint": True},
        {"append": "twice", "id": "b", "path": str(lines)},
        {"text": "Two. "},
        {"wait": 60, "attempts": 1},
        {"usd": 0.25},
        {"text": "Three."},
    )
    user.seen(run_id, "message.delta", 2)

    os.kill(system.worker.pid, signal.SIGKILL)
    events = user.events(run_id)

    assert "run.completed" == events[-1]["type"]
    assert list(range(1, len(events) + 1)) == [event["seq"] for event in events]
    assert "once\ntwice\n" == lines.read_text()
    assert 2 == types(events).count("tool.call") == types(events).count("tool.result")
    at = types(events).index("run.resumed")
    assert "message.reset" == events[at + 1]["type"]
    assert "One. Two. Three." == text_of(events)
    run = user.get_run(run_id)
    assert ("completed", 2, 0.25) == (run["status"], run["attempt"], run["cost_usd"])
    assert ("assistant", "Two. Three.", False) == user.messages(run["thread_id"])[-1]
    assert events == user.events(run_id)


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("last", [{"wait": 60}, {"hang": 20}])
def test_a_cancel_reaches_an_agent(user: Caller, agent: str, last: dict[str, Any]) -> None:
    """The run ends soon, whether its agent waits for the run or blocks elsewhere."""
    run_id = run_of(user, {"text": "A part"}, last, {"text": "more"}, persona=agent)
    user.seen(run_id, "message.delta")

    user.cancel(run_id)

    assert "cancelled" == user.ended(run_id)["status"]
    assert "A part" == text_of(user.events(run_id))


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_asks_a_person(user: Caller, agent: str) -> None:
    """The run waits without a worker, and the agent gets the answer when it asks again."""
    run_id = run_of(user, {"ask": "Blue?", "options": ["yes"]}, persona=agent)
    user.until(run_id, "status", "waiting_for_input")

    user.answer(run_id, "yes")

    assert "completed" == user.ended(run_id)["status"]
    assert "yes" == text_of(user.events(run_id))


def test_a_deploy_hands_an_agent_over(system: System, user: Caller, tmp_path: Path) -> None:
    """A worker that is asked to stop lets the agent continue elsewhere from its checkpoint."""
    gate = tmp_path / "gate"
    run_id = run_of(user, {"text": "One. "}, {"until": str(gate)}, {"text": "Two."})
    user.seen(run_id, "message.completed")

    system.worker.stop(signal.SIGTERM)
    system.worker.start()
    gate.touch()
    events = user.events(run_id)

    assert [("deploy", 1)] == [(e["reason"], e["attempt"]) for e in data_of(events, "run.resumed")]
    assert "One. Two." == text_of(events)


def test_agents_do_not_stop_each_other(user: Caller, tmp_path: Path) -> None:
    """Agents that block and event loops of asyncio run side by side: each waits for the others."""
    meet = {"meet": str(tmp_path), "count": 3 * len(AGENTS)}
    run_ids = [
        run_of(user, meet, {"text": str(i)}, persona=agent) for i in range(3) for agent in AGENTS
    ]

    texts = [text_of(user.events(run_id)) for run_id in run_ids]

    assert [str(i) for i in range(3) for _ in AGENTS] == texts


def test_an_agent_starts_no_program(user: Caller, tmp_path: Path) -> None:
    """The refusal comes before the program's effect, and says where programs can be started."""
    made = tmp_path / "made"
    where = "An agent in the service's workers cannot start programs: use an agent worker."

    steps = [
        user.ended(run_of(user, {kind: str(made), "id": "a"})) for kind in ("program", "system")
    ]
    failed = user.ended(run_of(user, {"program": str(made)}, persona="async_script"))

    refused = f"The tool failed: ProgramRefused. {where}"
    assert [refused, refused] == [step["output"] for step in steps]
    assert f"The agent failed: ProgramRefused. {where}" == failed["error"]["message"]
    assert not made.exists()


def test_a_step_of_a_coroutine_waits_for_a_coroutine(user: Caller) -> None:
    """The step runs in a thread, and what it waits for in the agent's own event loop."""
    run_id = run_of(user, {"await": "Noon", "id": "a"}, persona="async_script")

    events = user.events(run_id)

    assert [("Noon!", False)] == [
        (data["output"], data["is_error"]) for data in data_of(events, "tool.result")
    ]
    assert "Noon!" == text_of(events)


def test_a_budget_ends_an_agent(user: Caller) -> None:
    """The run completes with the text so far, and every cost that was reported is counted."""
    run_id = run_of(user, {"text": "So far"}, {"usd": 1.5}, {"text": "more"}, persona="thrifty")

    run = user.ended(run_id)

    assert ("completed", "budget", 1.5) == (run["status"], run["stop_reason"], run["cost_usd"])
    assert "So far" == run["output"]
