"""Creating runs in a closed loop, while a worker executes them: how many a second, how long each.

Beside it a gunicorn that does nothing but one INSERT for each request, into the same Postgres: once
without a framework, once with the one that the service has. Both have the machine to themselves, so
creating is measured without a worker, too.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg

from arkloop.cli.dev.embedded_server import free_port
from arkloop.shared.storage.connections import Connections
from bench.baselines import bare_insert
from bench.conversations import lost, prepare, targets_of, wait_for_ends
from bench.figure import Figure, Limit, percentile
from bench.http_clients import Loop, Request, Target, call_all
from bench.service import READY_SECONDS, ROOT, Service

CLIENTS = 32
RUNS = (600, 6000)
GROWING_CLIENTS = (1, 8, 32, 128)
GROWING_RUNS = 600
WARM_UP_RUNS = 200
SHORT_RUNS = 100


@dataclass(frozen=True, slots=True)
class Creation:
    """The result of creating `runs` runs."""

    runs: int
    seconds: list[float]  # of each POST
    rate: float  # POSTs a second
    finished_rate: float  # runs a second, from the first POST until the last had ended
    lost: int
    cpu: str  # until the last had ended

    @property
    def latency(self) -> dict[str, float]:
        """Milliseconds."""
        parts = {"p50": 0.5, "p99": 0.99}
        return {name: percentile(self.seconds, part) * 1000 for name, part in parts.items()}


def measure(*, short: bool = False) -> Iterator[Figure]:
    """Measure two web processes and one worker, with the settings that they have by default."""
    runs, growing, each = (
        ((SHORT_RUNS,), (1, CLIENTS), SHORT_RUNS)
        if short
        else (RUNS, GROWING_CLIENTS, GROWING_RUNS)
    )
    with Service(web=2, workers=1) as service:
        loop, connections = Loop(), service.connect()
        create(loop, service, connections, SHORT_RUNS if short else WARM_UP_RUNS, CLIENTS)
        bare, stack = (
            _bare_rate(loop, service, 300 if short else 3000, app)
            for app in ("bare_insert", "stack_insert")
        )
        for clients in growing:
            found = create(loop, service, connections, each, clients)
            yield Figure(
                name="POST …/runs by number of clients",
                unit="ms",
                numbers=found.latency,
                count=found.runs,
                at_most={"p99": 100.0} if clients == CLIENTS else {},
                scale=("clients", clients),
                note=f"{found.rate:.0f} requests/s",
            )
        for count in runs:
            found = create(loop, service, connections, count, CLIENTS)
            scale = ("runs", float(count))
            yield Figure(
                name=f"create runs, {CLIENTS} clients: rate",
                unit="requests/s",
                numbers={"rate": found.rate},
                count=count,
                at_least={"rate": 600.0},
                limit=Limit(name="bare gunicorn, one INSERT", of="rate", value=bare),
                scale=scale,
                note="2 web processes, 1 worker",
            )
            yield _beside_the_stack("rate beside Flask and SQLAlchemy", found, stack)
            yield Figure(
                name=f"create runs, {CLIENTS} clients: POST → 201",
                unit="ms",
                numbers=found.latency,
                count=count,
                at_most={"p99": 100.0},
                scale=scale,
            )
            yield Figure(
                name=f"create runs, {CLIENTS} clients: first POST → last end",
                unit="runs/s",
                numbers={"finished": found.finished_rate},
                count=count,
                at_least={"finished": 250.0},
                scale=scale,
                note=found.cpu,
            )
            yield lost_figure(f"create runs, {CLIENTS} clients: lost", found, scale)
        service.end("worker")
        found = create(loop, service, connections, runs[0], CLIENTS, executed=False)
        yield _beside_the_stack("rate without a worker", found, stack)


def _beside_the_stack(name: str, found: Creation, stack: float) -> Figure:
    return Figure(
        name=f"create runs, {CLIENTS} clients: {name}",
        unit="requests/s",
        numbers={"rate": found.rate},
        count=found.runs,
        at_least={"ratio": 0.3},
        limit=Limit(name="Flask, SQLAlchemy, one INSERT", of="rate", value=stack),
        scale=("runs", float(found.runs)),
    )


def create(
    loop: Loop,
    service: Service,
    connections: Connections,
    count: int,
    clients: int,
    *,
    executed: bool = True,
) -> Creation:
    """Create `runs` runs, each in a thread of its own, and wait until all have ended.

    Not waited for unless they are `executed`.
    """
    targets = targets_of(service)
    threads = prepare(loop, targets, count, "hello")
    requests: list[Request] = [("POST", f"/v1/threads/{thread}/runs", {}) for thread in threads]
    cpu = service.cpu_of_all()
    began = time.perf_counter()
    answers = call_all(loop, targets, requests, connections=clients)
    answered = time.perf_counter()
    ended = wait_for_ends(connections) if executed else answered
    used = service.cpu_since(cpu)
    statuses = Counter(status for status, _, _ in answers)
    assert {201} == set(statuses), statuses
    return Creation(
        runs=count,
        seconds=[seconds for _, _, seconds in answers],
        rate=count / (answered - began),
        finished_rate=count / (ended - began),
        lost=lost(connections, [json.loads(body)["run_id"] for _, body, _ in answers])
        if executed
        else 0,
        cpu=used,
    )


def lost_figure(name: str, found: Creation, scale: tuple[str, float]) -> Figure:
    """Build the figure of how many did not end as they should."""
    return Figure(
        name=name,
        unit="runs",
        numbers={"lost": found.lost},
        count=found.runs,
        at_most={"lost": 0},
        scale=scale,
        is_promise=True,
    )


def _bare_rate(loop: Loop, service: Service, count: int, app: str) -> float:
    """Measure the requests per second of a baseline, with as many processes and clients."""
    with _bare_servers(service, len(service.urls), app) as targets:
        requests: list[Request] = [("POST", "/", {})] * count
        call_all(loop, targets, requests[: count // 10], connections=CLIENTS)
        began = time.perf_counter()
        answers = call_all(loop, targets, requests, connections=CLIENTS)
        seconds = time.perf_counter() - began
    assert {201} == {status for status, _, _ in answers}
    return count / seconds


@contextlib.contextmanager
def _bare_servers(service: Service, processes: int, app: str) -> Iterator[list[Target]]:
    url = service.postgres.url.replace("+psycopg", "", 1)
    with psycopg.connect(url) as sql:
        sql.execute(bare_insert.TABLE)
    targets, started = [], []
    command = [sys.executable, "-m", "gunicorn", "--worker-class", "gevent", "--workers", "1"]
    command += ["--keep-alive", "5", "--no-control-socket", "--log-level", "warning"]
    try:
        for _ in range(processes):
            address = f"127.0.0.1:{free_port()}"
            process = subprocess.Popen(
                [*command, "--bind", address, f"bench.baselines.{app}:create_app()"],
                cwd=ROOT,
                env={**service.environ, "BENCH_DATABASE_URL": url},
                start_new_session=True,
            )
            started.append(process)
            targets.append(Target(f"http://{address}", "-"))
        for target in targets:
            _wait_for(target)
        yield targets
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(target: Target) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            socket.create_connection(target.address).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
