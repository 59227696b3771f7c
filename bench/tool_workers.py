"""Tool workers: the cost of a call beside a tool in the process, the delay until an idle worker has
it, the memory of an idle poll, and the time until a lost worker is noticed.

    .venv/bin/python -m bench.tool_workers [--calls 200] [--polls 500] [--losses 10]

Exit status 1: a target was missed.
"""

import argparse
import http.client
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import text

from bench import table
from bench.figure import Figure, percentile
from bench.machine import machine
from bench.service import Service
from bench.streams import raise_file_limit

SETTLE_SECONDS = 3.0
LEASE_SECONDS = 2
#: A heartbeat is on its way for this long before its connection is closed.
HEARD_SECONDS = 0.3
TOOLS = [
    {
        "name": "echo",
        "description": "Return the text.",
        "parameters": {"type": "object", "properties": {"text": {"type": "string"}}},
        "idempotent": True,
    }
]


class Client:
    """A client on one connection, which is kept if it has no pauses."""

    def __init__(self, service: Service, *, is_kept: bool = True) -> None:
        self._is_kept = is_kept
        address = urlsplit(service.urls[0])
        self.http = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        self._headers = {
            "Authorization": f"Bearer {service.api_key}",
            "Content-Type": "application/json",
        }

    def send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> None:
        content = None if body is None else json.dumps(body)
        self.http.request(method, f"/v1{path}", body=content, headers=self._headers)

    def receive(self) -> Any:
        response = self.http.getresponse()
        content = response.read()
        assert response.status < 300, content
        return json.loads(content)

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        if not self._is_kept:
            self.http.close()  # the server would, after 5 s
        self.send(method, path, body)
        return self.receive()

    def poll(self, worker: str, *, pool: str = "bench", **body: Any) -> list[dict[str, Any]]:
        if not self._is_kept:
            self.http.close()
        self.send_poll(worker, pool=pool, **body)
        return list(self.receive()["calls"])

    def send_poll(self, worker: str, *, pool: str = "bench", **body: Any) -> None:
        body = {"worker_id": worker, "tools": TOOLS, **body}
        self.send("POST", f"/tool-workers/{pool}:poll", body)

    def run(self, *steps: Mapping[str, Any]) -> str:
        content = json.dumps({"script": [*steps, {"say": "ok"}]})
        body = {"persona_id": "bench", "route_id": "scripted", "message": content}
        return str(self.call("POST", "/runs", body)["run_id"])

    def complete(self, worker: str, call: Mapping[str, Any]) -> None:
        named = {"call_id": call["call_id"], "fence": call["fence"], "worker_id": worker}
        self.call("POST", "/tool-workers/bench:complete", {**named, "output": "x"})


class Worker:
    """A worker that returns at once; `fetched` has the time at which it had each call."""

    def __init__(self, service: Service) -> None:
        self.fetched: dict[str, float] = {}
        self._client = Client(service)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._ended.is_set():
            for call in self._client.poll("idle-one", wait_seconds=1):
                self.fetched[call["call_id"]] = time.time()
                self._client.complete("idle-one", call)

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


def main() -> int:
    options = _options()
    raise_file_limit()
    print(json.dumps(machine()), flush=True)
    figures: list[Figure] = []
    with Service(web=1, workers=1) as service:
        client = Client(service, is_kept=False)
        persona = {"key": "bench", "tool_workers": ["bench"], "tools": ["calculator"]}
        client.call("POST", "/personas", {**persona, "max_steps": 256, "max_equal_turns": 256})
        for figure in _calls(service, client, 10, "while the processes are new"):
            print(table.line(figure), flush=True)
        for figure in _figures(service, client, options):
            print(table.line(figure), flush=True)
            figures.append(figure)
    print(table.table({"tool workers": figures}))
    return int(any(figure.missed for figure in figures))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.tool_workers", description=__doc__)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--polls", type=int, default=500)
    parser.add_argument("--losses", type=int, default=10)
    return parser.parse_args()


def _figures(service: Service, client: Client, options: argparse.Namespace) -> Iterator[Figure]:
    yield from _calls(service, client, options.calls, "alone")
    with _idle_polls(service, options.polls) as figures:
        yield from figures
        yield from _calls(service, client, options.calls, f"beside {options.polls} idle polls")
    yield _detection(service, client, options.losses, "its connection closes", 4.0)
    yield _detection(service, client, options.losses, "it freezes", LEASE_SECONDS + 1.0)


def _calls(service: Service, client: Client, count: int, how: str) -> Iterator[Figure]:
    """Make calls of both kinds in turn, in runs of one process, one call at a time."""
    client.poll("idle-one", wait_seconds=0)
    worker = Worker(service)
    durations: dict[str, list[float]] = {"calculator": [], "echo": []}
    worker.fetched.clear()
    for begin in range(0, count, 100):
        steps = [
            step
            for number in range(begin, min(begin + 100, count))
            for step in (
                {"tool": "calculator", "args": {"expression": f"{number} + 1"}},
                {"tool": "echo", "args": {"text": str(number)}},
            )
        ]
        run_id = client.run(*steps)
        names: dict[str, tuple[str, float]] = {}
        for event in _events(client, run_id):
            data, at = event["data"], datetime.fromisoformat(event["created_at"]).timestamp()
            if event["type"] == "tool.call":
                names[data["tool_call_id"]] = (data["name"], at)
            elif event["type"] == "tool.result":
                name, _ = names[data["tool_call_id"]]
                durations[name].append(data["duration_ms"])
    worker.end()
    for name, label in (("calculator", "in the process"), ("echo", "of a tool worker")):
        yield Figure(
            name=f"call {label}, {how}",
            unit="ms",
            numbers=_percentiles(durations[name]),
            count=len(durations[name]),
        )
    with service.connect().reading() as sql:
        rows = sql.execute(text("SELECT id, created_at FROM worker_calls"))
        queued = {str(row.id): row.created_at.timestamp() for row in rows}
    pickups = [1000 * (at - queued[call_id]) for call_id, at in worker.fetched.items()]
    yield Figure(
        name=f"call queued → an idle worker has it, {how}",
        unit="ms",
        numbers=_percentiles(pickups),
        count=len(pickups),
        at_most={"p99": 20.0},
    )


def _events(client: Client, run_id: str) -> list[dict[str, Any]]:
    """Return the run's events when it has ended."""
    while client.call("GET", f"/runs/{run_id}")["status"] == "running":
        time.sleep(0.1)
    client.http.close()
    client.send("GET", f"/runs/{run_id}/events?follow=false")
    body = client.http.getresponse().read().decode()
    lines = [line[6:] for line in body.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines]


def _percentiles(values: list[float]) -> dict[str, float]:
    return {"p50": percentile(values, 0.5), "p99": percentile(values, 0.99)}


@contextmanager
def _idle_polls(service: Service, count: int) -> Iterator[list[Figure]]:
    """Hold idle polls of another pool during the block."""
    # What the process needs for a burst of requests stays with it, and is not that of idle polls.
    before = service.memory("web")[0]
    clients = _open_polls(service, count)
    burst = (service.memory("web")[0] - before) / 1024 / count
    for one in clients:
        one.http.close()
    time.sleep(SETTLE_SECONDS)
    before = service.memory("web")[0]
    held_before = _connections(service)
    clients = _open_polls(service, count)
    each = (service.memory("web")[0] - before) / 1024 / count
    held = _connections(service) - held_before
    [pid] = service.serving("web")
    yield [
        Figure(
            name="idle poll: memory of the web process",
            unit="KB",
            numbers={"each": each},
            count=count,
            at_most={"each": 20.0},
            note=f"{burst:.1f} KB in the first burst, with what the process keeps of it",
        ),
        Figure(
            name="idle polls: more connections to Postgres than without",
            unit="connections",
            numbers={"all": held},
            count=count,
            at_most={"all": 0.0},
        ),
        Figure(
            name="idle polls: connections to Redis",
            unit="connections",
            numbers={"all": service.redis_connections(pid)},
            count=count,
        ),
    ]
    for one in clients:
        one.http.close()


def _open_polls(service: Service, count: int) -> list[Client]:
    clients = [Client(service) for _ in range(count)]
    for number, one in enumerate(clients):
        one.send_poll(f"w-{number}", pool="idle", wait_seconds=30)
    time.sleep(SETTLE_SECONDS)
    return clients


def _connections(service: Service) -> int:
    """Count sessions of the web process that are doing something, or are in a transaction."""
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE application_name LIKE 'arkloop-web%' AND state <> 'idle'"
    )
    with service.connect().reading() as sql:
        return int(sql.scalar(text(query)) or 0)


def _detection(service: Service, client: Client, count: int, how: str, at_most: float) -> Figure:
    """Lose a worker with a call; measure the time until another one has that call."""
    closes = at_most == 4.0
    seconds = []
    for number in range(count):
        client.run({"tool": "echo", "args": {"text": "x"}})
        lost, other = Client(service), Client(service)
        with closing(lost.http), closing(other.http):
            lease = 300 if closes else LEASE_SECONDS
            (call,) = lost.poll(f"lost-{number}", lease_seconds=lease)
            named = {"call_id": call["call_id"], "fence": call["fence"]}
            body = {"worker_id": f"lost-{number}", "calls": [named], "lease_seconds": lease}
            path = "/tool-workers/bench:heartbeat"
            if closes:
                lost.send("POST", path, {**body, "wait_seconds": 30})
                other.send_poll("other")
                time.sleep(HEARD_SECONDS)
                lost.http.close()
            else:
                other.send_poll("other")
                lost.call("POST", path, body)
            began = time.monotonic()
            (again,) = other.receive()["calls"]
            seconds.append(time.monotonic() - began)
            other.complete("other", again)
    return Figure(
        name=f"a worker is lost ({how}) → another one has its call",
        unit="s",
        numbers={"p50": percentile(seconds, 0.5), "max": max(seconds)},
        count=count,
        at_most={"max": at_most},
    )


if __name__ == "__main__":
    sys.exit(main())
