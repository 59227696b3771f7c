"""Heartbeats of an agent worker: which executions their responses concern."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from arkloop.agents import AgentRun
from arkloop.cli.client.server_address import ServerAddress
from arkloop.cli.serve.agent_worker import AgentWorker
from tests.cli.serve.polled_runs import RUN, RUN_ID
from tests.cli.serve.scripted_service import scripted_service


class SlowHeartbeats:
    """A service with one run, which waits and is polled again while a heartbeat is on its way."""

    def __init__(self) -> None:
        self.beating, self.polled_again, self.beaten, self.ended = (
            threading.Event() for _ in range(4)
        )
        self.fence = 0
        self.completed: list[int] = []

    def respond(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        match verb:
            case "poll":
                self.fence += 1
                if self.fence > 2:
                    self.ended.wait(30)
                    return {"lease_seconds": 15.0, "runs": []}
                return {"lease_seconds": 15.0, "runs": [{**RUN, "fence": self.fence}]}
            case "heartbeat":
                return {"lease_seconds": 15.0, "runs": self._beat(body["runs"])}
            case "complete":
                self.completed.append(body["fence"])
                self.ended.set()
        status = "waiting_for_input" if verb == "ask" else "running"
        return {"status": status, "cancel_requested": False, "next_seq": 9}

    def _beat(self, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Respond to the first one late: the run is no longer held under its fence."""
        is_held = not runs or runs[0]["fence"] > 1
        if is_held:
            self.beaten.set()
        else:
            self.beating.set()
            self.polled_again.wait(30)
        return [{"run_id": RUN_ID, "is_held": is_held, "cancel_requested": False} for _ in runs]


@pytest.fixture
def service() -> Iterator[tuple[SlowHeartbeats, ServerAddress]]:
    slow = SlowHeartbeats()
    with scripted_service(lambda verb, body: (200, slow.respond(verb, body))) as address:
        yield slow, address


def test_a_late_heartbeat_stops_no_execution_that_came_after_it(
    service: tuple[SlowHeartbeats, ServerAddress],
) -> None:
    """A run that waited, was answered, and was polled again while it was on its way, continues."""
    slow, address = service

    def agent(run: AgentRun) -> str:
        if slow.fence == 1:
            slow.beating.wait(30)
            return run.ask("Which one?")
        slow.polled_again.set()
        slow.beaten.wait(30)
        return "done"

    worker = AgentWorker(address, "mine", agent, concurrency=1, grace_seconds=1)
    working = threading.Thread(target=worker.run, daemon=True)
    working.start()
    ended = slow.ended.wait(10)
    worker.stop()
    working.join(30)

    assert (True, [2]) == (ended, slow.completed)
