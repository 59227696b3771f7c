"""Many runs at once, each of 100 deltas 20 ms apart and followed by a client: when they end."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from arkloop.shared.storage.connections import Connections
from bench.conversations import lost, prepare, script, targets_of
from bench.figure import Figure, Limit, percentile
from bench.http_clients import Follower, Loop, Request, call_all
from bench.service import Service

DELTAS = 100
DELAY_MS = 20
#: What the model itself takes.
IDEAL_SECONDS = DELTAS * DELAY_MS / 1000
RUNS = (50, 200, 1000)
SHORT_RUNS = (20,)
TARGETS: Mapping[int, Mapping[str, float]] = {50: {"p99": 2.3}, 200: {"p99": 2.6}, 1000: {"all": 6}}
_PATIENCE_SECONDS = 60.0
_DELTA = re.compile(rb'"type":"message\.delta","data":\{"content":"([^"]*)"')
_NUMBER = re.compile(rb"(\d+):")


@dataclass(frozen=True, slots=True)
class Burst:
    """Seconds from each run's POST to its last event, and from the first POST to the very last."""

    seconds: list[float]
    all_seconds: float
    lost: int
    cpu: str

    @property
    def numbers(self) -> dict[str, float]:
        return {
            "p50": percentile(self.seconds, 0.5),
            "p99": percentile(self.seconds, 0.99),
            "max": max(self.seconds),
            "all": self.all_seconds,
        }


def measure(*, short: bool = False) -> Iterator[Figure]:
    """Measure two web processes and two workers, with slots for all runs."""
    environ = {"ARKLOOP_WORKER_CONCURRENCY": "1000"}
    with Service(web=2, workers=2, environ=environ) as service:
        loop, connections = Loop(), service.connect()
        burst(loop, service, connections, 20)
        for runs in SHORT_RUNS if short else RUNS:
            found = burst(loop, service, connections, runs)
            scale = ("runs", float(runs))
            yield from figures("burst of runs", found, scale, TARGETS.get(runs))


def burst(loop: Loop, service: Service, connections: Connections, runs: int) -> Burst:
    """Create `runs` runs at once; each is followed as soon as it is there."""
    targets = targets_of(service)
    content = script({"count": DELTAS, "delay_ms": DELAY_MS})
    threads = prepare(loop, targets, runs, content)
    sent_at: dict[str, float] = {}
    followers: list[Follower] = []

    def follow(status: int, body: bytes, sent: float, _at: float) -> None:
        assert status == 201, body
        run_id = json.loads(body)["run_id"]
        sent_at[run_id] = sent
        target = targets[len(followers) % len(targets)]
        followers.append(Follower(loop, target, run_id, keep=True))

    requests: list[Request] = [("POST", f"/v1/threads/{thread}/runs", {}) for thread in threads]
    cpu = service.cpu_of_all()
    try:
        call_all(loop, targets, requests, on_answer=follow)
        loop.until(
            lambda: all(one.ended_at or not one.is_open for one in followers),
            _PATIENCE_SECONDS,
            f"the ends of {runs} runs",
        )
    finally:
        for one in followers:
            one.close()
    used = service.cpu_since(cpu)
    ends = {one.run_id: one.ended_at for one in followers if one.ended_at is not None}
    return Burst(
        seconds=[at - sent_at[run_id] for run_id, at in ends.items()],
        all_seconds=max(ends.values()) - min(sent_at.values()),
        lost=sum(not is_complete(one) for one in followers) + lost(connections, list(sent_at)),
        cpu=used,
    )


def is_complete(follower: Follower) -> bool:
    """Return whether the client has every event and every number of the text, once and in order."""
    said = [int(n) for text in _DELTA.findall(follower.text) for n in _NUMBER.findall(text)]
    return follower.end == "run.completed" and not follower.holes and said == [*range(DELTAS)]


def figures(
    name: str,
    found: Burst,
    scale: tuple[str, float],
    targets: Mapping[str, float] | None = None,
) -> Iterator[Figure]:
    """Yield when they ended, and how many of them did not end as they should."""
    yield Figure(
        name=f"{name}: POST → last event at the client",
        unit="s",
        numbers=found.numbers,
        count=len(found.seconds),
        at_most=targets or {},
        limit=Limit(name="the model alone", of="p99", value=IDEAL_SECONDS),
        scale=scale,
        note=found.cpu,
    )
    yield Figure(
        name=f"{name}: not complete at the client or in Postgres",
        unit="runs",
        numbers={"lost": found.lost},
        count=len(found.seconds),
        at_most={"lost": 0},
        scale=scale,
        is_promise=True,
    )
