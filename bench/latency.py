"""How long a client waits on an idle system: for the first events of a run, and for a cancel.

Starts the whole service as `arkloop dev` does, on a free port with data of its
own, and measures from the client's side, one request at a time. Beside each
figure stands its ratio to a bare request (`GET /healthz`) of the same run.

    .venv/bin/python -m bench.latency [--runs 100] [--cancels 50] [--json]
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

READY_SECONDS = 90
HANGING = json.dumps({"script": [{"say": "x "}, {"hang": 60}]})


@contextmanager
def service() -> Iterator[httpx2.Client]:
    """A client of a service that lives as long as the block."""
    with tempfile.TemporaryDirectory(prefix="arkloop-bench-") as folder:
        data = Path(folder) / "data"
        command = [Path(sys.executable).with_name("arkloop"), "dev", "--port", "0"]
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--no-local-model", "--data", data],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + READY_SECONDS
            while b"Ready on " not in log.read_bytes():
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(log.read_text())
                time.sleep(0.1)
            url = log.read_text().split("Ready on ")[1].split()[0]
            key = (data / "api-key").read_text().strip()
            with httpx2.Client(
                base_url=url, headers={"Authorization": f"Bearer {key}"}, trust_env=False
            ) as client:
                yield client
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def new_run(client: httpx2.Client, content: str) -> tuple[str, float]:
    """The run's id, and when its POST was sent."""
    thread_id = client.post("/v1/threads", json={}).json()["id"]
    client.post(f"/v1/threads/{thread_id}/messages", json={"content": content})
    sent = time.perf_counter()
    return client.post(f"/v1/threads/{thread_id}/runs").json()["run_id"], sent


def first_seen(client: httpx2.Client, run_id: str, *types: str) -> dict[str, float]:
    """When the first event of each type arrived; reads to the end of the stream."""
    seen: dict[str, float] = {}
    with client.stream("GET", f"/v1/runs/{run_id}/events") as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                kind = json.loads(line[6:])["type"]
                if kind in types:
                    seen.setdefault(kind, time.perf_counter())
    return seen


def measure(client: httpx2.Client, runs: int, cancels: int) -> dict[str, list[float]]:
    """Seconds, by what was waited for."""
    names = ("GET /healthz", "POST → 201", "POST → run.started", "POST → first message.delta")
    figures: dict[str, list[float]] = {name: [] for name in (*names, "cancel → run.cancelled")}
    for number in range(runs + 5):
        began = time.perf_counter()
        client.get("/healthz")
        bare = time.perf_counter() - began
        run_id, sent = new_run(client, "hello")
        answered = time.perf_counter()
        seen = first_seen(client, run_id, "run.started", "message.delta")
        if number >= 5:  # the first ones fill caches
            waited = (answered, seen["run.started"], seen["message.delta"])
            for name, seconds in zip(names, (bare, *(at - sent for at in waited)), strict=True):
                figures[name].append(seconds)
    with httpx2.Client(
        base_url=client.base_url, headers=client.headers, trust_env=False
    ) as canceller:
        for _ in range(cancels):
            run_id, _sent = new_run(client, HANGING)
            figures["cancel → run.cancelled"].append(_cancel(client, canceller, run_id))
    return figures


def _cancel(client: httpx2.Client, canceller: httpx2.Client, run_id: str) -> float:
    asked: list[float] = []

    def ask() -> None:
        canceller.get("/healthz")  # so that the connection is there
        asked.append(time.perf_counter())
        canceller.post(f"/v1/runs/{run_id}:cancel")

    with client.stream("GET", f"/v1/runs/{run_id}/events") as stream:
        for line in stream.iter_lines():
            if '"type":"message.delta"' in line:
                threading.Timer(0.05, ask).start()
            if '"type":"run.cancelled"' in line:
                return time.perf_counter() - asked[0]
    raise AssertionError("the run ended otherwise")


def percentile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--cancels", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with service() as client:
        figures = measure(client, options.runs, options.cancels)
    bare = percentile(figures["GET /healthz"], 0.5)
    rows = [
        {
            "figure": name,
            "count": len(values),
            "p50_ms": round(percentile(values, 0.5) * 1000, 2),
            "p99_ms": round(percentile(values, 0.99) * 1000, 2),
            "p50_ratio_to_healthz": round(percentile(values, 0.5) / bare, 1),
        }
        for name, values in figures.items()
    ]
    if options.json:
        print(json.dumps({"cores": os.cpu_count(), "machine": platform.machine(), "rows": rows}))
        return
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    for row in rows:
        print(
            "{figure:28} n={count:<4} p50 {p50_ms:8.2f} ms   p99 {p99_ms:8.2f} ms   ".format(**row)
            + "{p50_ratio_to_healthz:6.1f} × healthz".format(**row)
        )


if __name__ == "__main__":
    main()
