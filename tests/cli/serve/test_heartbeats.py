"""The heartbeats of workers with work that begins while one of them waits."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from arkloop.agents import AgentRun
from arkloop.cli.client.server_address import ServerAddress
from arkloop.cli.serve.agent_worker import AgentWorker
from arkloop.cli.serve.tool_worker import ToolWorker
from arkloop.shared import ids
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.tools import tool
from tests.cli.serve.polled_runs import RUN
from tests.cli.serve.scripted_service import scripted_service
from tests.cli.serve.test_tool_worker import CALL
from tests.waiting import eventually

Made = Callable[[ServerAddress, threading.Event], ToolWorker | AgentWorker]


def tool_worker(address: ServerAddress, is_over: threading.Event) -> ToolWorker:
    @tool(idempotent=True)
    def work(context: ToolContext) -> str:
        """Execute the call."""
        is_over.wait(60)
        return "done"

    return ToolWorker(
        address, "mine", {"work": work}, concurrency=8, lease_seconds=300, grace_seconds=9
    )


def agent_worker(address: ServerAddress, is_over: threading.Event) -> AgentWorker:
    def agent(run: AgentRun) -> str:
        is_over.wait(60)
        return "done"

    return AgentWorker(address, "mine", agent, concurrency=8, grace_seconds=9)


class Handouts:
    """A service that hands out more work once a heartbeat waits that names all so far.

    Its heartbeats respond when the test is over.
    """

    def __init__(self) -> None:
        self.is_over = threading.Event()
        self.handed: list[str] = []
        self.named: list[list[str]] = []
        self._changed = threading.Condition()

    def respond(self, verb: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        match verb:
            case "poll":
                fetched = self._next()
                runs = [{**RUN, "run_id": id_, "fence": 1} for id_ in fetched]
                calls = [{**CALL, "call_id": id_, "fence": 1} for id_ in fetched]
                polled = {"runs": runs, "calls": calls, "cancelled": []}
                return 200, {"lease_seconds": 90.0, "tools_hash": "0" * 64, **polled}
            case "heartbeat":
                held = body.get("calls") or body["runs"]
                with self._changed:
                    self.named.append(sorted(one.get("call_id") or one["run_id"] for one in held))
                    self._changed.notify_all()
                self.is_over.wait(60)
                return 200, {"lease_seconds": 90.0, "runs": [], "cancelled": [], "lost": []}
        ended = {"status": "completed", "cancel_requested": False, "next_seq": 9}
        return 200, {"ok": True, "cancelled": [], **ended}

    def _next(self) -> list[str]:
        with self._changed:
            self._changed.wait_for(lambda: self.is_over.is_set() or self._is_named(), timeout=60)
            if self.is_over.is_set() or len(self.handed) == 4:
                self._changed.wait(0.1)
                return []
            self.handed.append(str(ids.new_id()))
            return self.handed[-1:]

    def _is_named(self) -> bool:
        return not self.handed or sorted(self.handed) in self.named


@pytest.mark.parametrize("made", [tool_worker, agent_worker])
def test_work_that_begins_while_a_heartbeat_waits_is_named_by_another_one(made: Made) -> None:
    """The service takes from a killed worker what was named. Each heartbeat names all, so that the
    one before may be broken off.
    """
    service = Handouts()
    with scripted_service(service.respond) as address:
        worker = made(address, service.is_over)
        working = threading.Thread(target=worker.run, daemon=True)
        working.start()
        eventually(lambda: len(service.named) == 4)
        service.is_over.set()
        worker.stop()
        working.join(30)

    assert [sorted(service.handed[:count]) for count in (1, 2, 3, 4)] == service.named[:4]
    assert worker.failure is None
