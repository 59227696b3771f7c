"""The heartbeats of workers with work that begins while one of them waits."""

import threading
import time
from collections.abc import Callable, Collection
from typing import Any

import pytest

from arkloop.agents import AgentRun
from arkloop.cli.client.server_address import ServerAddress
from arkloop.cli.serve.agent_worker import AgentWorker
from arkloop.cli.serve.heartbeats import Heartbeats
from arkloop.cli.serve.service import Service, Unreachable
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
            named = _ids_of(body)
            if self._waiting or named not in self.named:  # else it is the next one of the same work
                self.named.append(named)
            self._waiting += 1
            self.most_waiting = max(self.most_waiting, self._waiting)
            self._changed.notify_all()
        self.is_over.wait(body["wait_seconds"] + self._late_seconds)
        with self._changed:
            self._waiting -= 1


class BrokenOff(Handouts):
    """A service whose first heartbeat fails once a second one has come, which has no response."""

    def __init__(self) -> None:
        super().__init__(2, lease_seconds=24, late_seconds=60)
        self.heard: list[float] = []

    def respond(self, verb: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if verb != "heartbeat":
            return super().respond(verb, body)
        self.heard.append(time.monotonic())
        if len(self.heard) > 1:
            return super().respond(verb, body)
        with self._changed:
            self.named.append(_ids_of(body))
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self.heard) > 1, timeout=60)
        return 503, {}


def _ids_of(body: dict[str, Any]) -> list[str]:
    return sorted(map(_id_of, body.get("calls") or body["runs"]))


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
def test_a_heartbeat_that_fails_is_sent_again_while_a_newer_one_hangs(made: Made) -> None:
    """The service need not have read that one, and would soon take what the other has named."""
    service = BrokenOff()
    assert [[1], [1, 2], [1, 2]] == heartbeats_of(made, service, 3)
    _, newer, again = service.heard[:3]
    assert again - newer < service.lease_seconds / 3  # before any heartbeat is given up


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


def test_a_connection_that_keeps_failing_does_not_stop_the_other_one() -> None:
    """The service has heartbeats as often as one of the two connections works."""
    changed, work = threading.Condition(), ["first"]
    is_broken, sent_by = threading.Event(), list[Service]()
    broken: list[Service] = []

    def send(service: Service, named: Collection[str]) -> None:
        if not broken:
            broken.append(service)
        if service is broken[0]:
            is_broken.wait(60)
            time.sleep(1)
            raise Unreachable("its server is gone")
        time.sleep(0.2)
        sent_by.append(service)

    address = ServerAddress("http://127.0.0.1:9", "key")
    heartbeats = Heartbeats[str](address, "/", changed, lambda: work, send, lambda: 0.2, 30.0)
    for task in heartbeats.tasks:
        threading.Thread(target=task, daemon=True).start()
    eventually(lambda: broken)
    with changed:
        work.append("second")
        changed.notify_all()
    eventually(lambda: sent_by)
    is_broken.set()
    before = len(sent_by)

    eventually(lambda: len(sent_by) > before + 5)
    heartbeats.abort()
