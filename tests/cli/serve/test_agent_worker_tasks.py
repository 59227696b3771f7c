"""Agents whose tasks run side by side in an `asyncio.TaskGroup`, in an agent worker."""

import asyncio
import logging
import threading
from typing import Any

import pytest

from arkloop.agents import AgentRun
from arkloop.cli.serve.agent_worker import AgentWorker
from tests.cli.serve.polled_runs import RUN
from tests.cli.serve.scripted_service import scripted_service


async def _asks(run: AgentRun) -> None:
    run.ask("Which one?")


async def _fails() -> None:
    raise ValueError("a fault of the agent")


@pytest.mark.parametrize("has_fault", [False, True])
def test_a_run_that_waits_in_a_task_is_no_error(
    caplog: pytest.LogCaptureFixture, has_fault: bool
) -> None:
    """The group of exceptions says that the run stops; what else is in it stays in the log."""
    polled, over = threading.Event(), threading.Event()

    async def agent(run: AgentRun) -> None:
        async with asyncio.TaskGroup() as tasks:
            if has_fault:
                tasks.create_task(_fails())
            tasks.create_task(_asks(run))

    def respond(verb: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if verb in ("poll", "heartbeat"):
            is_first = verb == "poll" and not polled.is_set()
            if verb == "poll" and polled.is_set() and not body["held"]:
                over.set()
            polled.set()
            return 200, {"lease_seconds": 15.0, "runs": [{**RUN, "fence": 1}] if is_first else []}
        status = "waiting_for_input" if verb == "ask" else "running"
        return 200, {"status": status, "cancel_requested": False, "next_seq": 9}

    with scripted_service(respond) as address, caplog.at_level(logging.ERROR):
        worker = AgentWorker(address, "mine", agent, concurrency=1, grace_seconds=1)
        working = threading.Thread(target=worker.run, daemon=True)
        working.start()
        is_over = over.wait(60)
        worker.stop()
        working.join(30)

    assert is_over
    assert has_fault == ("a fault of the agent" in caplog.text)
    assert has_fault == ("the agent raised" in caplog.text)
