"""A service with everything on under a steady load: does anything of it grow?

    .venv/bin/python -m bench.soak [--minutes 60] [--rate 16] [--json FILE]

Two web processes and two workers behind row-level security, with limits, metrics, spans, webhooks,
files, prompts that are kept, and retention of ten minutes. Each minute has a sample of memory, open
files, connections, rows, dead rows, sizes, WAL, CPU and latencies. The median of the last third is
compared with that of the second. Exit status 1: something has grown beyond its tolerance, which is
judged from 10 minutes on; or a request failed, a run did not end as it must, or a webhook was lost.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from arkloop.cli.dev.embedded_server import free_port
from arkloop.shared.accounts import org_settings
from arkloop.shared.org_limits import LIMITS
from arkloop.shared.storage.connections import Connections
from bench.http_clients import Loop, Target
from bench.machine import commit, machine
from bench.machine import load as machine_load
from bench.row_security import put_up
from bench.service import ROOT, Service
from bench.soak import samples
from bench.soak.load import LATE_SECONDS, PERSONA, TOOL, Load
from bench.soak.verdict import JUDGED_MINUTES, most_unavailable, per_run, times, trends, unmatched

KEPT_SECONDS = 600.0
_HIGH = 10_000_000
_FILE = b"The meeting is at noon.\n" * 1000


def main() -> int:
    options = _options()
    print(json.dumps({"commit": commit(), "machine": machine()}), flush=True)
    with tempfile.TemporaryDirectory(prefix="arkloop-soak-") as folder:
        arrivals = Path(folder, "arrivals.jsonl")
        arrivals.touch()
        port, metrics_port = free_port(), free_port()
        environ = {
            "ARKLOOP_ALLOWED_NETWORKS": "127.0.0.0/8",
            "ARKLOOP_ENCRYPTION_KEY": "0" * 64,
            "ARKLOOP_FILES_DIR": str(Path(folder, "files")),
            "ARKLOOP_METRICS_PORT": str(metrics_port),
            "ARKLOOP_METRICS_DIR": str(Path(folder, "metrics")),
            "ARKLOOP_STREAM_TTL_SECONDS": "120",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        }
        with _receiver(port, arrivals), Service(web=0, workers=0, environ=environ) as service:
            walled = {"ARKLOOP_DATABASE_URL": put_up(service)}
            for role in ("worker", "web") * 2:
                service.start(role, walled)
            for url in service.urls:
                service.wait_for_web(url)
            connections = service.connect()
            with connections.transaction() as tx:
                org_settings.change(tx, service.owner.org_id, dict.fromkeys(LIMITS, _HIGH))
            file_id = _prepare(service, port)
            targets = [Target(url, service.api_key) for url in service.urls]
            load = Load(Loop(), targets, options.rate, file_id)
            taken = _soak(service, connections, load, metrics_port, options.minutes * 60)
            faults = load.faults + _lost_webhooks(load, arrivals)
            logged = _logged(service)
    for line, count in logged.most_common(20):
        print(f"logged: {count} × {line}")
    return _report(options, taken, load, faults)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=16, help="runs a second")
    parser.add_argument("--json", type=Path, help="the samples, as a list")
    return parser.parse_args()


@contextmanager
def _receiver(port: int, arrivals: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "bench.soak.receiver", str(port), str(arrivals)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _prepare(service: Service, port: int) -> str:
    """Create what the load needs; returns the id of a file."""
    headers = {"Authorization": f"Bearer {service.api_key}"}
    with httpx.Client(
        base_url=service.urls[0], headers=headers, timeout=60, trust_env=False
    ) as http:
        at = f"http://127.0.0.1:{port}"
        tool = {"name": TOOL, "description": "Look up an order.", "url": f"{at}/tool"}
        persona: dict[str, Any] = {"key": PERSONA, "tools": [TOOL], "route_id": "scripted"}
        for path, body in (
            ("/v1/tools", tool | {"idempotent": True}),
            ("/v1/personas", persona),
            ("/v1/webhook-endpoints", {"url": f"{at}/hook"}),
        ):
            http.post(path, json=body).raise_for_status()
        made = http.post("/v1/files", files={"file": ("notes.txt", _FILE)}).raise_for_status()
        return str(made.json()["id"])


def _soak(
    service: Service, connections: Connections, load: Load, metrics_port: int, seconds: float
) -> list[dict[str, float]]:
    """Let the load run for these seconds; returns the samples, a minute or a twelfth apart."""
    every = min(60.0, seconds / 12)
    kept = max(LATE_SECONDS, min(KEPT_SECONDS, seconds / 6))  # a client may be that late
    taken: list[dict[str, float]] = []
    began = time.perf_counter()
    earlier: dict[str, float] = {}

    def take(ended: float, latencies: dict[str, list[float]], minute: float) -> None:
        nonlocal earlier
        samples.age(connections, kept)
        now = samples.sample(service, connections, metrics_port) | {"total runs": ended}
        now |= times(latencies)
        if earlier:
            taken.append({"minute": minute, "load": machine_load(), **per_run(earlier, now)})
            print(
                json.dumps({name: round(value, 2) for name, value in taken[-1].items()}), flush=True
            )
        earlier = now

    due = began + min(5.0, every)  # what is cold counts for nothing
    sampler = samples.Sampler(take, load.faults)
    while (now := time.perf_counter()) < began + seconds:
        load.turn()
        if now >= due and sampler.is_idle:
            due += every
            sampler.begin(float(len(load.ended)), load.take(), (now - began) / 60)
    sampler.wait()
    if not taken:
        load.fault("no samples")
    load.finish()
    return taken


def _lost_webhooks(load: Load, arrivals: Path) -> Counter[str]:
    """Wait for the webhooks of all ends; returns those that are missing."""
    wanted = set(load.ended)
    deadline = time.monotonic() + LATE_SECONDS
    while True:
        arrived = [json.loads(line) for line in arrivals.read_text().splitlines()]
        ends = {run_id for run_id, kind in arrived if kind != "run.waiting_for_input"}
        if wanted <= ends:
            return Counter()
        if time.monotonic() > deadline:
            return Counter({"webhooks of an end that have not arrived": len(wanted - ends)})
        time.sleep(0.2)


def _logged(service: Service) -> Counter[str]:
    """Return what the processes have warned of."""
    found = Counter[str]()
    for role in ("web", "worker"):
        for line in service.log(role).splitlines():
            if line.startswith("{") and (entry := json.loads(line))["level"] != "INFO":
                found[f"{role} {entry['level']} {entry['message'][:160]}"] += 1
    return found


def _report(
    options: argparse.Namespace, taken: list[dict[str, float]], load: Load, faults: Counter[str]
) -> int:
    found = trends(taken)
    print(f"{'':5} {'median of a third':44} {'second':>12} {'last':>12} {'change':>9}  allowed")
    for trend in found:
        if trend.tolerance is not None or trend.after >= 1000:
            print(trend.line())
    grown = [one.name for one in found if one.has_grown]
    print(
        f"{load.created} runs in {options.minutes:g} minutes, {len(taken)} samples;"
        f" {load.unavailable} of {load.requests} requests unavailable"
    )
    if load.unavailable > most_unavailable(load.requests, options.minutes):
        faults["requests unavailable"] += load.unavailable
    for what, count in faults.items():
        print(f"FAULT: {count} × {what}")
    if options.json:
        options.json.write_text(json.dumps(taken, indent=1) + "\n")
    if options.minutes < JUDGED_MINUTES:
        print("too short to judge growth")
        return int(bool(faults))
    if unseen := unmatched(found):
        print(f"FAULT: not in the samples: {', '.join(unseen)}")
    print(f"grown: {', '.join(grown) or 'nothing'}")
    return int(bool(faults or unseen or grown))


if __name__ == "__main__":
    sys.exit(main())
