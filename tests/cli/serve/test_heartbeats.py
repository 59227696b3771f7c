"""The heartbeats of workers with work that begins while one of them waits."""

import threading
from collections.abc import Callable, Collection
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


class Handouts:
    """A service that hands out more work once a heartbeat waits that names all there is.

    Its heartbeats respond `late_seconds` after they have waited, or when the test is over. The
    pieces of work with the numbers in `short` end at once, and the next one is handed out later.
    """

    def __init__(
        self,
        pieces: int,
        short: Collection[int] = (),
        *,
        lease_seconds: int = 9,
        late_seconds: float = 0,
    ) -> None:
        self.is_over = threading.Event()
        self.lease_seconds = lease_seconds  # a heartbeat waits for a third of it
        self.handed: list[str] = []
        self.named: list[list[str]] = []
        self.most_waiting = self._waiting = self._begun = 0
        self._ended: set[str] = set()
        self._pieces, self._short, self._late_seconds = pieces, short, late_seconds
        self._changed = threading.Condition()

    @property
    def is_out(self) -> bool:
        """True once all pieces have been handed out."""
        return len(self.handed) == self._pieces

    def respond(self, verb: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        match verb:
            case "poll":
                fetched = self._next()
                runs = [{**RUN, "run_id": id_, "fence": 1} for id_ in fetched]
                calls = [{**CALL, "call_id": id_, "fence": 1} for id_ in fetched]
                polled = {"runs": runs, "calls": calls, "cancelled": []}
                return 200, {"lease_seconds": self.lease_seconds, "tools_hash": "0" * 64, **polled}
            case "heartbeat":
                self._wait(body)
                news = {"runs": [], "cancelled": [], "lost": []}
                return 200, {"lease_seconds": self.lease_seconds, **news}
            case "complete":
                with self._changed:
                    self._ended.add(_id_of(body))
                    self._changed.notify_all()
        ended = {"status": "completed", "cancel_requested": False, "next_seq": 9}
        return 200, {"ok": True, "cancelled": [], **ended}

    def work(self) -> str:
        """Return what the tool or the agent does, once its work is over."""
        with self._changed:
            self._begun += 1
            is_short = self._begun in self._short
        if not is_short:
            self.is_over.wait(60)
        return "done"

    def _next(self) -> list[str]:
        with self._changed:
            self._changed.wait_for(lambda: self.is_over.is_set() or self._is_named(), timeout=60)
            if self._ended:
                self.is_over.wait(self.lease_seconds / 5)
            if self.is_over.is_set() or self.is_out:
                self._changed.wait(0.1)
                return []
            self.handed.append(str(ids.new_id()))
            return self.handed[-1:]

    def _is_named(self) -> bool:
        return not self.handed or sorted({*self.handed} - self._ended) in self.named

    def _wait(self, body: dict[str, Any]) -> None:
        with self._changed:
            named = sorted(map(_id_of, body.get("calls") or body["runs"]))
            if self._waiting or named not in self.named:  # else it is the next one of the same work
                self.named.append(named)
            self._waiting += 1
            self.most_waiting = max(self.most_waiting, self._waiting)
            self._changed.notify_all()
        self.is_over.wait(body["wait_seconds"] + self._late_seconds)
        with self._changed:
            self._waiting -= 1


def _id_of(named: dict[str, Any]) -> str:
    return str(named.get("call_id") or named["run_id"])


Made = Callable[[ServerAddress, Handouts], ToolWorker | AgentWorker]


def tool_worker(address: ServerAddress, service: Handouts) -> ToolWorker:
    @tool(idempotent=True)
    def work(context: ToolContext) -> str:
        """Execute the call."""
        return service.work()

    lease = service.lease_seconds
    return ToolWorker(
        address, "mine", {"work": work}, concurrency=8, lease_seconds=lease, grace_seconds=9
    )


def agent_worker(address: ServerAddress, service: Handouts) -> AgentWorker:
    def agent(run: AgentRun) -> str:
        return service.work()

    return AgentWorker(address, "mine", agent, concurrency=8, grace_seconds=9)


def heartbeats_of(
    made: Made, service: Handouts, count: int, seconds_later: float = 0
) -> list[list[int]]:
    """Return the numbers of the pieces that new heartbeats have named: at least `count`, and
    those that come within `seconds_later` once all work is handed out.
    """
    with scripted_service(service.respond) as address:
        worker = made(address, service)
        working = threading.Thread(target=worker.run, daemon=True)
        working.start()
        eventually(lambda: len(service.named) >= count and service.is_out)
        service.is_over.wait(seconds_later)
        heartbeats = service.named.copy()
        service.is_over.set()
        worker.stop()
        working.join(30)
    assert worker.failure is None
    numbers = {id_: number for number, id_ in enumerate(service.handed, start=1)}
    return [sorted(numbers[id_] for id_ in named) for named in heartbeats]


@pytest.mark.parametrize("made", [tool_worker, agent_worker])
def test_work_that_begins_while_a_heartbeat_waits_is_named_by_another_one(made: Made) -> None:
    """The service takes from a killed worker what was named, and each heartbeat names all."""
    service = Handouts(4)
    assert [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4]] == heartbeats_of(made, service, 4)


@pytest.mark.parametrize("made", [tool_worker, agent_worker])
def test_the_first_of_two_heartbeats_is_not_broken_off_for_a_third(made: Made) -> None:
    """The service need not have read the second one, and would take what the first has named."""
    service = Handouts(3, lease_seconds=18, late_seconds=1)
    heartbeats_of(made, service, 3)
    assert 2 == service.most_waiting


@pytest.mark.parametrize("made", [tool_worker, agent_worker])
def test_work_that_ends_at_once_causes_no_heartbeat(made: Made) -> None:
    """Heartbeats have a limit: a worker with many short calls must not exceed it."""
    service = Handouts(3, short=[2], lease_seconds=30)
    assert [[1], [1, 3]] == heartbeats_of(made, service, 2)


@pytest.mark.parametrize("made", [tool_worker, agent_worker])
def test_the_longer_a_heartbeat_waits_the_later_another_one_is_sent(made: Made) -> None:
    """A worker that is busy sends at most twice as many as another one, also with a long lease."""
    service = Handouts(2, lease_seconds=90)
    assert [[1]] == heartbeats_of(made, service, 1, seconds_later=3)
