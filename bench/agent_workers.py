"""Agent workers: the delay until an idle one has a run, and the time until a lost one is noticed.

    .venv/bin/python -m bench.agent_workers [--runs 100] [--losses 10]

Exit status 1: a target was missed.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from arkloop.shared.config import Settings
from arkloop.shared.ids import new_id
from bench import table
from bench.figure import Figure, percentile
from bench.machine import machine
from bench.service import Service
from bench.tool_workers import HEARD_SECONDS, Client

AGENT = "bench"
LEASE_SECONDS = Settings.lease_seconds
CLOSED_SECONDS = 4.0
#: A waiting poll is on its way for this long before a run is created.
WAITING_SECONDS = 0.05


def main() -> int:
    options = _options()
    print(json.dumps(machine()), flush=True)
    figures: list[Figure] = []
    with Service(web=1, workers=1) as service:
        client = Client(service, is_kept=False)
        client.call("POST", "/personas", {"key": "bench", "agent": AGENT})
        for figure in _figures(service, client, options):
            print(table.line(figure), flush=True)
            figures.append(figure)
    print(table.table({"agent workers": figures}))
    return int(any(figure.missed for figure in figures))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.agent_workers", description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--losses", type=int, default=10)
    return parser.parse_args()


def _figures(service: Service, client: Client, options: argparse.Namespace) -> Iterator[Figure]:
    yield _pickups(service, client, options.runs)
    yield _closed(service, client, options.losses)
    yield _frozen(service, client, options.losses)


def _start(client: Client) -> str:
    return str(client.call("POST", "/runs", {"persona_id": "bench", "message": "Go."})["run_id"])


def _poll(worker: Client, worker_id: str, max_runs: int = 1) -> None:
    body = {"worker_id": worker_id, "wait_seconds": 30, "max_runs": max_runs}
    worker.send("POST", f"/agent-workers/{AGENT}:poll", body)


def _beat(worker: Client, worker_id: str, runs: list[dict[str, Any]], seconds: int) -> None:
    """Send a heartbeat that waits for news for `seconds`."""
    named = [{"run_id": run["run_id"], "fence": run["fence"]} for run in runs]
    body = {"worker_id": worker_id, "runs": named, "wait_seconds": seconds}
    worker.send("POST", f"/agent-workers/{AGENT}:heartbeat", body)


def _complete(worker: Client, run: dict[str, Any]) -> None:
    body = {"run_id": run["run_id"], "fence": run["fence"]}
    path = f"/agent-workers/{AGENT}:complete"
    worker.call("POST", path, {**body, "seq": run["next_seq"], "content": "Done."})


def _pickups(service: Service, client: Client, count: int) -> Figure:
    """Create runs one at a time; measure from the response until a waiting poll has the run."""
    milliseconds, worker_id, worker = [], str(new_id()), Client(service)
    with closing(worker.http):
        for _ in range(count):
            _poll(worker, worker_id)
            time.sleep(WAITING_SECONDS)
            _start(client)
            began = time.monotonic()
            (run,) = worker.receive()["runs"]
            milliseconds.append(1000 * (time.monotonic() - began))
            _complete(worker, run)
    return Figure(
        name="run created → an idle agent worker has it",
        unit="ms",
        numbers={"p50": percentile(milliseconds, 0.5), "p99": percentile(milliseconds, 0.99)},
        count=count,
    )


def _closed(service: Service, client: Client, count: int) -> Figure:
    """Lose workers whose connections close, one after the other."""
    seconds = []
    for _ in range(count):
        _start(client)
        worker_id, other_id = str(new_id()), str(new_id())
        lost, other = Client(service), Client(service)
        with closing(lost.http), closing(other.http):
            _poll(lost, worker_id)
            held = lost.receive()["runs"]
            _beat(lost, worker_id, held, 30)
            _poll(other, other_id)
            time.sleep(HEARD_SECONDS)
            began = time.monotonic()
            lost.http.close()
            (again,) = other.receive()["runs"]
            seconds.append(time.monotonic() - began)
            _complete(other, again)
    return _loss("its connection closes", seconds, CLOSED_SECONDS)


def _frozen(service: Service, client: Client, count: int) -> Figure:
    """Freeze workers together, each at another moment after its last heartbeat.

    Their connections stay open. The time counts from the heartbeat, which is at least as long as
    from the moment when the worker freezes.
    """
    others_id, other = str(new_id()), Client(service)
    heard: dict[str, float] = {}
    silent: list[Client] = []
    for _ in range(count):
        _start(client)
        worker_id, worker = str(new_id()), Client(service)
        _poll(worker, worker_id)
        held = worker.receive()["runs"]
        heard[held[0]["run_id"]] = time.monotonic()
        _beat(worker, worker_id, held, 0)
        silent.append(worker)
        time.sleep(LEASE_SECONDS / 5 / count)
    seconds: list[float] = []
    with closing(other.http):
        while heard:
            _poll(other, others_id, max_runs=16)
            found = other.receive()["runs"]
            at = time.monotonic()
            seconds += [at - heard.pop(run["run_id"]) for run in found]
            for run in found:
                _complete(other, run)
    for worker in silent:
        worker.http.close()
    return _loss(f"it freezes, with a lease of {LEASE_SECONDS:g} s", seconds, LEASE_SECONDS)


def _loss(how: str, seconds: list[float], at_most: float) -> Figure:
    return Figure(
        name=f"an agent worker is lost ({how}) → another one has its run",
        unit="s",
        numbers={"p50": percentile(seconds, 0.5), "max": max(seconds)},
        count=len(seconds),
        at_most={"max": at_most},
    )


if __name__ == "__main__":
    sys.exit(main())
