"""Creating runs in processes that have just started, as after a deploy, beside their next ones.

Nothing runs in a process before the first create of a round, so its first requests pay for what a
process does once: connections, statements that are prepared, caches. Postgres is warm. Each round
compares with itself, so that other load on the machine matters less.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from arkloop.shared.storage.connections import Connections
from bench.conversations import prepare, targets_of, wait_for_ends
from bench.create import CLIENTS, create
from bench.figure import Figure, Limit
from bench.http_clients import Loop, Request, call_all
from bench.service import Service

FIRST_RUNS, LATER_RUNS = 600, 1_200
WARM_UP_RUNS = 1_500
ROUNDS = 5
SHORT_FIRST_RUNS, SHORT_LATER_RUNS = 50, 100
SHORT_WARM_UP_RUNS = 100
#: What a process still does when it serves already, such as importing beside its first runs.
SETTLE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Round:
    """Requests a second of fresh processes, and of the same ones a moment later."""

    first: float
    later: float

    @property
    def ratio(self) -> float:
        return self.first / self.later


def measure(*, short: bool = False) -> Iterator[Figure]:
    """Measure two web processes and one worker, which are started again for each round."""
    first, later, warm_up, rounds = (
        (SHORT_FIRST_RUNS, SHORT_LATER_RUNS, SHORT_WARM_UP_RUNS, 1)
        if short
        else (FIRST_RUNS, LATER_RUNS, WARM_UP_RUNS, ROUNDS)
    )
    with Service(web=2, workers=1) as service:
        loop, connections = Loop(), service.connect()
        create(loop, service, connections, warm_up, CLIENTS)
        found = [_round(loop, service, connections, first, later) for _ in range(rounds)]
    median = sorted(found, key=lambda one: one.ratio)[rounds // 2]
    yield Figure(
        name=f"create runs in fresh processes, {CLIENTS} clients: rate",
        unit="requests/s",
        numbers={"rate": median.first},
        count=first * rounds,
        at_least={"ratio": 0.9},
        limit=Limit(name=f"the {later:,} runs after them", of="rate", value=median.later),
        note="rounds: " + ", ".join(f"{one.ratio:.2f}" for one in found),
    )


def _round(loop: Loop, service: Service, connections: Connections, first: int, later: int) -> Round:
    # The processes that make the threads are not those that are measured.
    threads = prepare(loop, targets_of(service), first + later, "hello")
    for role in ("worker", "web"):
        service.restart(role)
    time.sleep(SETTLE_SECONDS)
    rates = [_rate(loop, service, connections, part) for part in (threads[:first], threads[first:])]
    return Round(*rates)


def _rate(loop: Loop, service: Service, connections: Connections, threads: Sequence[str]) -> float:
    """Create a run in each thread and wait until all have ended; returns the POSTs a second."""
    requests: list[Request] = [("POST", f"/v1/threads/{thread}/runs", {}) for thread in threads]
    began = time.perf_counter()
    answers = call_all(loop, targets_of(service), requests, connections=CLIENTS)
    seconds = time.perf_counter() - began
    statuses = Counter(status for status, _, _ in answers)
    assert {201} == set(statuses), statuses
    wait_for_ends(connections)
    return len(threads) / seconds
