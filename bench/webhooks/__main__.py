"""Webhooks under kill -9, with receivers that are down, hang, fail, redirect, flood or are gone.

    .venv/bin/python -m bench.webhooks [--seconds 40] [--seed 1] [--real-times] [--no-kills]

For `--seconds` six of seven receivers misbehave, each in its way, while runs end and wait, and
every few seconds a worker or a web server is killed: at a random moment, or between the response
of a receiver and its record. Then the receivers work again. `--real-times` has the time-outs and
pauses of production. Exit status 1: an event is lost, came out of order, or shares its id with
another one; or there were no runs, no events for one of the receivers or, in 40 s or more, no kill
between a response and its record.
"""

import argparse
import contextlib
import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import httpx
from sqlalchemy import text

from arkloop.cli.dev.embedded_server import free_port
from arkloop.shared.storage.connections import Connections
from bench.service import ROOT, Service
from bench.webhooks.load import Load
from bench.webhooks.receiver import DOWN, GONE, HEALTHY, KINDS
from bench.webhooks.verdict import Place, Verdict, judge, untried

ENVIRON = {
    "ARKLOOP_ALLOWED_NETWORKS": "127.0.0.0/8",
    "ARKLOOP_ENCRYPTION_KEY": secrets.token_hex(32),
    "ARKLOOP_FAULTS": "1",
    "ARKLOOP_LEASE_SECONDS": "6",
    "ARKLOOP_HEARTBEAT_SECONDS": "0.5",
    "ARKLOOP_SWEEP_SECONDS": "0.3",
}
SHORT_TIMES = {
    "ARKLOOP_WEBHOOK_TIMEOUT_SECONDS": "2",
    "ARKLOOP_WEBHOOK_RETRY_SECONDS": "0.5,2,5,20,60,120,240",
}
SECONDS = 40.0
RUNS_PER_SECOND = 3.0
CLIENTS = 4
KILL_SECONDS = 5.0
#: Runs continue to end for this long after the receivers work again.
AFTER_SECONDS = 5.0
SETTLED_SECONDS = 180.0
#: A delivery that fails just as its receiver recovers has its whole pause before it.
MOST_SETTLED_SECONDS = 2_500.0
ATTEMPT_SECONDS = 60.0
UNRECORDED = "worker, between response and record"

_EVENTS = """
SELECT e.run_id::text, e.seq FROM run_events e
WHERE e.type IN ('run.completed', 'run.failed', 'run.cancelled', 'run.waiting_for_input')
"""
#: What is on its way, and the seconds until the last of its attempts is due.
_LEFT = """
SELECT (SELECT count(*) FROM runs WHERE ended_at IS NULL AND state <> 'waiting') + count(*),
    coalesce(greatest(0, extract(epoch FROM max(due_at) - now())), 0)::float8
FROM webhook_deliveries WHERE state = 'pending'
"""
_LIVING = "SELECT count(*) FROM workers WHERE seen_at > now() - interval '1.5 s'"
#: Of the time in which it was disabled there are none.
_EVENTS_OF_GONE = "SELECT run_id::text, seq FROM webhook_deliveries WHERE endpoint_id = :id"


class Receiver:
    """The receivers' process, and an endpoint of the org for each of them."""

    def __init__(self, folder: Path, http: httpx.Client, seconds: float) -> None:
        self._arrivals = folder / "arrivals.jsonl"
        self._http = http
        port, down_port = free_port(), free_port()
        self.ids: dict[str, str] = {}
        config: dict[str, Any] = {"secrets": {}, "heal_at": time.time() + seconds}
        for kind in KINDS:
            at = down_port if kind == DOWN else port
            made = http.post("/v1/webhook-endpoints", json={"url": f"http://127.0.0.1:{at}/{kind}"})
            made.raise_for_status()
            self.ids[kind] = made.json()["id"]
            config["secrets"][kind] = made.json()["signing_secret"]
        file = folder / "config.json"
        file.write_text(json.dumps(config))
        command = [sys.executable, "-m", "bench.webhooks.receiver", str(port), str(down_port)]
        self._process = subprocess.Popen([*command, str(file), str(self._arrivals)], cwd=ROOT)

    def arrivals(self, kind: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self._arrivals.read_text().splitlines()]
        return [one for one in found if one["kind"] == kind]

    def enable_again(self, url: str) -> int:
        """Enable the endpoint whose receiver was gone, and replay what is dead; return how much."""
        path = f"{url}/v1/webhook-endpoints/{self.ids[GONE]}"
        self._http.patch(path, json={"enabled": True}).raise_for_status()
        return int(self._http.post(f"{path}:replay").raise_for_status().json()["replayed"])

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


class Killer:
    """The death of one process after another, each of which is started again."""

    def __init__(self, service: Service, connections: Connections, seed: int) -> None:
        self._service, self._connections, self._chance = service, connections, Random(seed)
        self.kills: Counter[str] = Counter()
        self._armed: set[int] = set()

    def kill_one(self) -> None:
        """Kill a process at a random moment, or start workers that die at a point."""
        self._replace_dead_workers()
        with self._connections.reading() as sql:
            has_both = (sql.scalar(text(_LIVING)) or 0) >= 2
        # One worker lives while another one starts: the time of that is not what is measured.
        role = self._chance.choice(("worker", "worker", "web")) if has_both else "web"
        pids = self._service.pids[role]
        number = self._chance.randrange(len(pids))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pids[number], signal.SIGKILL)
        self.kills[f"{role}, at any moment"] += 1
        self._remove(role, number)
        self._start(role)

    def _replace_dead_workers(self) -> None:
        for pid in list(self._service.pids["worker"]):
            if pid in self._armed and _is_dead(pid):
                self.kills[UNRECORDED] += 1
                self._remove("worker", self._service.pids["worker"].index(pid))
                self._start("worker")

    def _remove(self, role: str, number: int) -> None:
        self._armed.discard(self._service.pids[role].pop(number))
        if role == "web":
            del self._service.urls[number]

    def _start(self, role: str) -> None:
        armed = {}
        if role == "worker" and self._chance.random() < 0.7:
            nth = self._chance.randint(1, 8)
            armed = {"ARKLOOP_FAULT_POINT": f"worker.webhook_sent:{nth}:KILL"}
        pid = self._service.start(role, armed)
        if armed:
            self._armed.add(pid)

    def disarm(self) -> None:
        """Replace the workers that would still die."""
        self._replace_dead_workers()
        for pid in list(self._armed):
            self.kills["worker, at any moment"] += 1
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            self._remove("worker", self._service.pids["worker"].index(pid))
            self._service.start("worker")


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def main() -> int:
    options = _options()
    environ = ENVIRON if options.real_times else {**ENVIRON, **SHORT_TIMES}
    with (
        tempfile.TemporaryDirectory(prefix="arkloop-webhooks-") as folder,
        Service(web=2, workers=2, environ=environ) as service,
        contextlib.closing(_client(service)) as http,
    ):
        receiver = Receiver(Path(folder), http, options.seconds)
        try:
            return _try(service, receiver, options)
        finally:
            receiver.end()


def _client(service: Service) -> httpx.Client:
    headers = {"Authorization": f"Bearer {service.api_key}"}
    return httpx.Client(base_url=service.urls[0], headers=headers, timeout=30, trust_env=False)


def _try(service: Service, receiver: Receiver, options: argparse.Namespace) -> int:
    connections = service.connect()
    began = time.monotonic()
    killer = Killer(service, connections, options.seed)
    loads = [
        Load(service.urls, service.api_key, RUNS_PER_SECOND / CLIENTS, options.seed + number)
        for number in range(CLIENTS)
    ]
    for load in loads:
        load.start()
    while time.monotonic() - began < options.seconds:
        time.sleep(min(KILL_SECONDS, options.seconds))
        if not options.no_kills:
            killer.kill_one()
    killer.disarm()
    time.sleep(AFTER_SECONDS)
    healed = time.monotonic()
    replayed = receiver.enable_again(service.urls[-1])
    for load in loads:
        load.finish()
    left = _wait_until_settled(connections)
    print(f"settled {time.monotonic() - healed:.0f} s after the receivers worked again", flush=True)
    verdicts = _verdicts(connections, receiver)
    for kind, verdict in verdicts.items():
        print(_line(kind, verdict))
        for fault in verdict.faults[:10]:
            print(f"  {kind}: {fault}")
    kills = ", ".join(f"{count} {where}" for where, count in sorted(killer.kills.items()))
    total = {name: sum(getattr(v, name) for v in verdicts.values()) for name in _SUMS}
    created, refused = (sum(getattr(one, name) for one in loads) for name in ("created", "refused"))
    print(f"{created} runs, {refused} creations without a response; kills: {kills}")
    print(f"{replayed} dead deliveries replayed; not settled: {left}")
    print(", ".join(f"{name.replace('_', ' ')} {count}" for name, count in total.items()))
    must_kill = None if options.no_kills or options.seconds < SECONDS else UNRECORDED
    missing = untried(created, verdicts, killer.kills, must_kill)
    for what in missing:
        print(f"FAULT: {what}")
    return int(left > 0 or bool(missing) or any(verdict.faults for verdict in verdicts.values()))


_SUMS = ("events", "attempts", "duplicates", "lost", "order_violations")


def _wait_until_settled(connections: Connections) -> int:
    """Wait until no run is on its way and nothing is pending; return how much is left.

    Runs whose creation had no response may ask for ever: the client does not know them.
    """
    began = time.monotonic()
    deadline = began + SETTLED_SECONDS
    while True:
        with connections.reading() as sql:
            left, pause = sql.execute(text(_LEFT)).one()
        now = time.monotonic()
        if left == 0 or now > deadline:
            return int(left)
        due = now + pause + ATTEMPT_SECONDS
        deadline = max(deadline, min(due, began + MOST_SETTLED_SECONDS))
        time.sleep(0.5)


def _verdicts(connections: Connections, receiver: Receiver) -> dict[str, Verdict]:
    verdicts = {}
    with connections.reading() as sql:
        events: list[Place] = [(row[0], row[1]) for row in sql.execute(text(_EVENTS))]
        found = sql.execute(text(_EVENTS_OF_GONE), {"id": receiver.ids[GONE]})
        of_gone: list[Place] = [(row[0], row[1]) for row in found]
    for kind in KINDS:
        expected = of_gone if kind == GONE else events
        verdicts[kind] = judge(expected, receiver.arrivals(kind))
    return verdicts


def _line(kind: str, verdict: Verdict) -> str:
    delays = sorted(verdict.delays) or [0.0]
    p50, p99 = statistics.median(delays), delays[int(len(delays) * 0.99)]
    unit = 1000 if kind == HEALTHY else 1
    return (
        f"{kind:8} {verdict.events:5} events, {verdict.attempts:5} attempts,"
        f" {verdict.duplicates:3} duplicates, {verdict.lost} lost,"
        f" {verdict.order_violations} out of order; from event to arrival"
        f" p50 {p50 * unit:.0f}, p99 {p99 * unit:.0f}, max {delays[-1] * unit:.0f}"
        f" {'ms' if unit == 1000 else 's'}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--real-times", action="store_true")
    parser.add_argument("--no-kills", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
