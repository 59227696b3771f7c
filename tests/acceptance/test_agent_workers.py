"""Agent workers against real servers: they poll, and every way in which one is lost."""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from arkloop.shared import ids
from tests.caller import Caller, client
from tests.system import System

pytestmark = pytest.mark.processes


@dataclass
class Worker:
    """An agent worker over real HTTP."""

    http: httpx.Client
    agent: str
    id: str = field(default_factory=lambda: str(ids.new_id()))

    def post(self, verb: str, **body: Any) -> Any:
        answer = self.http.post(f"/v1/agent-workers/{self.agent}:{verb}", json=body)
        assert 200 == answer.status_code, answer.text
        return answer.json()

    def poll(self, seconds: float = 20) -> dict[str, Any]:
        [run] = self.post("poll", worker_id=self.id, wait_seconds=seconds)["runs"]
        return dict(run)

    def beat(self, run: dict[str, Any], seconds: float = 0) -> dict[str, Any]:
        held = {"run_id": run["run_id"], "fence": run["fence"]}
        answer = self.post("heartbeat", worker_id=self.id, wait_seconds=seconds, runs=[held])
        return dict(answer["runs"][0])


@pytest.fixture(scope="module")
def agent(user: Caller) -> str:
    """The agent of the persona `custom`."""
    user.made("/v1/personas", {"key": "custom", "agent": "custom"})
    return "custom"


@pytest.fixture
def worker(system: System, user: Caller, agent: str) -> Worker:
    _, key = user.api_key(scopes=["agents.work"])
    return Worker(client(system.web[1].url, key), agent)


def test_a_waiting_poll_gets_a_run_at_once(user: Caller, worker: Worker) -> None:
    """A run that is created at one server wakes the poll that waits at the other one."""
    found: list[tuple[float, dict[str, Any]]] = []

    def wait() -> None:
        found.append((time.monotonic(), worker.poll()))
        found.append((time.monotonic(), {}))

    waiting = threading.Thread(target=wait)
    waiting.start()
    run_id = user.run("Hello", persona_id="custom")
    waiting.join(60)

    run = found[0][1]
    assert run_id == run["run_id"]
    answer = worker.post(
        "complete", run_id=run_id, fence=run["fence"], seq=run["next_seq"], content="Hi."
    )
    assert "completed" == answer["status"]


def test_a_cancel_wakes_the_heartbeat(user: Caller, worker: Worker) -> None:
    """A heartbeat that waits returns as soon as its run is cancelled."""
    run_id = user.run("Hello", persona_id="custom")
    run = worker.poll()
    seen: list[dict[str, Any]] = []
    waiting = threading.Thread(target=lambda: seen.append(worker.beat(run, seconds=20)))
    waiting.start()

    user.cancel(run_id)
    waiting.join(60)

    assert [True] == [one["cancel_requested"] for one in seen]
    worker.post("release", run_id=run_id, fence=run["fence"], seq=run["next_seq"])
    assert "cancelled" == user.get_run(run_id)["status"]


def test_a_closed_connection_gives_the_run_to_another_worker(user: Caller, worker: Worker) -> None:
    """The run of a worker whose heartbeat's connection closes is polled by another one."""
    run_id = user.run("Hello", persona_id="custom")
    run = worker.poll()
    with pytest.raises(httpx.ReadTimeout):
        held = {"run_id": run["run_id"], "fence": run["fence"]}
        worker.http.post(
            f"/v1/agent-workers/{worker.agent}:heartbeat",
            json={"worker_id": worker.id, "wait_seconds": 20, "runs": [held]},
            timeout=0.3,
        )

    heir = Worker(worker.http, worker.agent)
    again = heir.poll()

    assert (run_id, 2) == (again["run_id"], again["attempt"])
    assert not worker.beat(run)["is_held"]
    ended = {"run_id": run_id, "fence": again["fence"], "seq": again["next_seq"]}
    heir.post("complete", **ended, content="Done.")


def test_a_frozen_worker_gets_its_lost_run_by_no_poll_that_waits(
    user: Caller, worker: Worker
) -> None:
    """A run whose worker was silent for a lease is not given to that worker's open connection."""
    run_id = user.run("Hello", persona_id="custom")
    worker.poll()
    waiting: list[Any] = []

    def wait() -> None:
        answer = worker.post("poll", worker_id=worker.id, wait_seconds=30, held=[run_id])
        waiting.append(answer["runs"])

    frozen = threading.Thread(target=wait)
    frozen.start()
    frozen.join(60)
    heir = Worker(worker.http, worker.agent)
    again = heir.poll()

    assert [[]] == waiting
    assert (run_id, 2) == (again["run_id"], again["attempt"])
    ended = {"run_id": run_id, "fence": again["fence"], "seq": again["next_seq"]}
    heir.post("complete", **ended, content="Done.")


def test_a_poll_whose_client_has_left_gets_no_run(user: Caller, worker: Worker) -> None:
    """A run that is created just after a worker has left goes to the next one, as a new run."""
    with pytest.raises(httpx.ReadTimeout):
        worker.http.post(
            f"/v1/agent-workers/{worker.agent}:poll",
            json={"worker_id": worker.id, "wait_seconds": 20},
            timeout=0.3,
        )

    run_id = user.run("Hello", persona_id="custom")
    heir = Worker(worker.http, worker.agent)
    run = heir.poll()

    assert (run_id, 1) == (run["run_id"], run["attempt"])
    ended = {"run_id": run_id, "fence": run["fence"], "seq": run["next_seq"]}
    heir.post("complete", **ended, content="Done.")
