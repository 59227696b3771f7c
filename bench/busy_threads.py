"""Creating runs with `on_busy: enqueue` in busy and in idle threads, beside plain creates.

No worker is there: a thread stays busy, and nothing but the requests uses the machine. The kinds of
requests take turns, so that a disturbance meets each of them.
"""

import json
import random
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from bench.conversations import PREPARING, targets_of
from bench.create import CLIENTS
from bench.figure import Figure, Limit, percentile
from bench.http_clients import Loop, Request, call_all
from bench.service import Service

ROUNDS = 4
RUNS = 400
SHORT_ROUNDS = 2
SHORT_RUNS = 100
#: One client has this many times as many rounds, with a part of the requests: a disturbance that
#: lasts as long as a round would meet one kind alone.
MORE_ROUNDS = 4
#: Runs that wait for one thread.
DEEP = 20

PLAIN = "plain create"
IN_IDLE = "enqueue in idle threads"
IN_BUSY = "enqueue in busy threads"
IN_DEEP = f"enqueue in busy threads, {DEEP} runs each"


def measure(*, short: bool = False) -> Iterator[Figure]:
    """Measure two web processes with the settings that they have by default."""
    for clients in (1, CLIENTS):
        rounds, runs = (SHORT_ROUNDS, SHORT_RUNS) if short else (ROUNDS, RUNS)
        with Service(web=2, workers=0) as service:
            kinds = _Kinds(service, clients)
            kinds.play(runs // 2)
            kinds.forget()  # it was a warm-up
            if clients == 1:
                rounds, runs = rounds * MORE_ROUNDS, max(runs // MORE_ROUNDS**2, DEEP)
            for _ in range(rounds):
                kinds.play(runs)
            yield from kinds.figures()


class _Kinds:
    """The requests of each kind: how long each took, and how many a second in each round."""

    def __init__(self, service: Service, clients: int) -> None:
        self._service = service
        self._loop = Loop()
        self._clients = clients
        self.forget()

    def forget(self) -> None:
        """Forget what was measured."""
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.rates: dict[str, list[float]] = defaultdict(list)
        self.cpu: dict[str, Counter[str]] = defaultdict(Counter)

    def play(self, runs: int) -> None:
        """Play one round of each kind, of as many runs."""
        threads, idle, deep = (self._threads(count) for count in (runs, runs, runs // DEEP))
        self._create(PLAIN, threads, {})
        self._create(IN_BUSY, threads, {"on_busy": "enqueue"})
        self._create(IN_IDLE, idle, {"on_busy": "enqueue"})
        self._send(deep, {})
        waiting = deep * DEEP
        random.Random(runs).shuffle(waiting)
        self._create(IN_DEEP, waiting, {"on_busy": "enqueue"})

    def figures(self) -> Iterator[Figure]:
        plain = statistics.median(self.rates[PLAIN])
        for kind, rates in self.rates.items():
            seconds = self.seconds[kind]
            yield Figure(
                name=f"{kind}, {self._clients} clients",
                unit="requests/s",
                numbers={"rate": statistics.median(rates)},
                count=len(seconds),
                at_least={"ratio": 0.9} if kind != PLAIN else {},
                limit=None if kind == PLAIN else Limit(name=PLAIN, of="rate", value=plain),
                note=f"p50 {percentile(seconds, 0.5) * 1000:.1f} ms,"
                f" p99 {percentile(seconds, 0.99) * 1000:.1f} ms;"
                f" rounds {min(rates):.0f} to {max(rates):.0f}; CPU of a request: "
                + ", ".join(
                    f"{role} {used / len(seconds) * 1000:.2f} ms"
                    for role, used in self.cpu[kind].items()
                ),
            )

    def _threads(self, count: int) -> list[str]:
        made = self._answers([("POST", "/v1/threads", {})] * count, min(self._clients, PREPARING))
        return [body["id"] for body, _ in made]

    def _create(self, kind: str, threads: Sequence[str], body: dict[str, Any]) -> None:
        cpu, began = self._cpu(), time.perf_counter()
        seconds = self._send(threads, body)
        self.rates[kind].append(len(seconds) / (time.perf_counter() - began))
        self.seconds[kind] += seconds
        self.cpu[kind] += self._cpu() - cpu

    def _cpu(self) -> Counter[str]:
        return Counter({role: self._service.cpu(role) for role in ("web", "postgres")})

    def _send(self, threads: Sequence[str], body: dict[str, Any]) -> list[float]:
        body = {"message": "And what of the cancelled ones?", **body}
        requests: list[Request] = [("POST", f"/v1/threads/{one}/runs", body) for one in threads]
        return [seconds for _, seconds in self._answers(requests, self._clients)]

    def _answers(self, requests: list[Request], clients: int) -> list[tuple[Any, float]]:
        answers = call_all(self._loop, targets_of(self._service), requests, connections=clients)
        refused = {status for status, _, _ in answers} - {201}
        assert not refused, refused
        return [(json.loads(body), seconds) for _, body, seconds in answers]
