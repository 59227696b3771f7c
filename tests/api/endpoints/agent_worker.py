"""An agent worker as tests play it, the runs it takes, and the events that it writes."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import pytest

from arkloop.shared import ids
from arkloop.shared.config import Settings
from arkloop.shared.events import event_log
from arkloop.shared.storage.connections import Connections
from tests.clients import User

MakeWorker = Callable[..., "Worker"]


@dataclass
class Worker:
    """An agent worker that does what a test says; `seq` is the number of its next event."""

    user: User
    agent: str = "mine"
    id: str = field(default_factory=lambda: str(ids.new_id()))
    run: dict[str, Any] = field(default_factory=dict)
    seq: int = 0

    def post(self, verb: str, **body: Any) -> Any:
        return self.user.post(f"/v1/agent-workers/{self.agent}:{verb}", json=body)

    def poll(self, **body: Any) -> list[dict[str, Any]]:
        response = self.post("poll", worker_id=self.id, wait_seconds=0, **body)
        assert 200 == response.status_code, response.text
        return list(response.json["runs"])

    def take(self) -> dict[str, Any]:
        [self.run] = self.poll()
        self.seq = self.run["next_seq"]
        return self.run

    def write(self, verb: str, *events: dict[str, Any], **body: Any) -> Any:
        """Write to the run that it took last."""
        own = {"run_id": self.run["run_id"], "fence": self.run["fence"]}
        if events or verb not in ("append", "checkpoint"):
            body = {"seq": self.seq, "events": list(events), **body}
        response = self.post(verb, **{**own, **body})
        if response.status_code == 200:
            self.seq = response.json["next_seq"]
        return response

    def beat(self, **known: Any) -> list[dict[str, Any]]:
        held = {"run_id": self.run["run_id"], "fence": self.run["fence"], **known}
        response = self.post("heartbeat", worker_id=self.id, wait_seconds=0, runs=[held])
        assert 200 == response.status_code, response.text
        return list(response.json["runs"])


def delta(text: str) -> dict[str, Any]:
    return {"type": "message.delta", "content": text}


def turn(text: str = "") -> dict[str, Any]:
    return {"type": "message.completed", "content": text}


def call(id_: str, name: str = "look_up", **arguments: Any) -> dict[str, Any]:
    return {"type": "tool.call", "tool_call_id": id_, "name": name, "arguments": arguments}


def result(id_: str, output: str, name: str = "look_up") -> dict[str, Any]:
    return {"type": "tool.result", "tool_call_id": id_, "name": name, "output": output}


def cost(usd: float, **tokens: int) -> dict[str, Any]:
    return {"type": "run.cost", "cost_usd": usd, "model": "their-model", **tokens}


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    """Workers that are lost after a long silence: each step of a slow test takes seconds."""
    return replace(settings, lease_seconds=180)


@pytest.fixture
def worker(alice: User) -> MakeWorker:
    """Call it for a worker by a key that may do nothing else."""
    key = alice.api_key("agents.work")
    return lambda agent="mine": Worker(key, agent)


@pytest.fixture
def start(alice: User) -> Callable[..., str]:
    """Call it for a run of a persona with the agent `mine`."""
    made = alice.post(
        "/v1/personas", json={"key": "custom", "agent": "mine", "system_prompt": "Hi"}
    )
    assert 201 == made.status_code, made.text

    def start(message: str | dict[str, Any] = "Hello", **fields: Any) -> str:
        body = {"persona_id": "custom", "message": message, **fields}
        response = alice.post("/v1/runs", json=body)
        assert response.json is not None
        assert 201 == response.status_code, response.text
        return str(response.json["run_id"])

    return start


def types_of(connections: Connections, run_id: str) -> list[str]:
    with connections.reading() as sql:
        return [event.type for event in event_log.read_table(sql, UUID(run_id), 0)]


def data_of(connections: Connections, run_id: str, kind: str) -> list[dict[str, Any]]:
    with connections.reading() as sql:
        stored = event_log.read_table(sql, UUID(run_id), 0)
    return [event_log.data_of(event.payload) for event in stored if event.type == kind]
