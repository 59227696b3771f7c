"""Attack a service of its own with hostile requests: no 5xx, none slow, no memory kept.

    .venv/bin/python -m bench.hostile [--requests 100000] [--clients 16] [--seed 1]

Requests are drawn from the API's URL map with malformed, oversized and expensive bodies, queries,
headers and tokens. Exit status 1: a response was a 5xx or took longer than 3 s, a request got no
response, or a web process kept more than 50 MB of memory.
"""

import argparse
import contextlib
import http.client
import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from arkloop.api.app import create_app
from bench.conversations import targets_of
from bench.figure import percentile
from bench.hostile.attacks import Attack, attacks
from bench.http_clients import Loop, call_all
from bench.service import Service

MAX_SECONDS = 3.0
MAX_GROWTH_BYTES = 50_000_000
#: A response that takes longer than this counts as none.
TIMEOUT_SECONDS = 30.0
WARM_UP_REQUESTS = 2_000
#: What the last requests took is freed some seconds after them: 60 MB were seen, of large bodies.
SETTLE_SECONDS = 10.0


@dataclass(slots=True)
class Verdict:
    """The responses of the service."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def add(self, attack: Attack, status: int, seconds: float) -> None:
        self.statuses[status] += 1
        self.seconds.append(seconds)
        # 501 is HTTP's response to a method or coding that the server does not implement.
        if status >= 500 and status != 501:
            self.faults.append(f"{status}: {attack.description}")
        if seconds > MAX_SECONDS:
            self.faults.append(f"{seconds:.1f} s: {attack.description}")


def main() -> int:
    options = _options()
    with Service(web=2, workers=1, environ={"ARKLOOP_REGISTRATION": "open"}) as service:
        drawn = attacks(
            create_app(connections=service.connect()),
            [service.api_key],
            _make_objects(service),
            options.seed,
        )
        source = _Source(drawn, WARM_UP_REQUESTS)
        _attack(service, source, options.clients)
        before = service.memory("web")
        source.remaining = options.requests
        began = time.monotonic()
        verdict = _attack(service, source, options.clients)
        seconds = time.monotonic() - began
        at_end = _growth(service, before)
        time.sleep(SETTLE_SECONDS)
        kept = _growth(service, before)
    return _judge(verdict, seconds, at_end, kept)


def _growth(service: Service, before: list[int]) -> list[int]:
    return [after - was for after, was in zip(service.memory("web"), before, strict=True)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def _judge(verdict: Verdict, seconds: float, at_end: list[int], kept: list[int]) -> int:
    count = len(verdict.seconds)
    statuses = ", ".join(f"{status}: {n}" for status, n in sorted(verdict.statuses.items()))
    print(f"{count} requests in {seconds:.0f} s ({statuses})")
    print(
        f"p50 {percentile(verdict.seconds, 0.5) * 1000:.1f} ms,"
        f" p99 {percentile(verdict.seconds, 0.99) * 1000:.1f} ms,"
        f" slowest {max(verdict.seconds):.2f} s;"
        f" web memory: {_megabytes(at_end)} MB more at the end, {_megabytes(kept)} MB kept"
    )
    for fault in verdict.faults[:50]:
        print(f"FAULT {fault}")
    if max(kept) > MAX_GROWTH_BYTES:
        print(f"FAULT more than {MAX_GROWTH_BYTES / 1e6:.0f} MB of memory were kept")
    return int(bool(verdict.faults) or max(kept) > MAX_GROWTH_BYTES)


def _megabytes(sizes: list[int]) -> str:
    return ", ".join(f"{size / 1e6:.1f}" for size in sizes)


def _make_objects(service: Service) -> list[str]:
    """Return ids of threads and of runs that end by themselves."""
    loop, targets = Loop(), targets_of(service)
    threads = [
        _id(answer, "id")
        for answer in call_all(loop, targets, [("POST", "/v1/threads", {})] * 20, connections=4)
    ]
    made = call_all(
        loop, targets, [("POST", f"/v1/threads/{id_}/runs", {}) for id_ in threads], connections=4
    )
    return [*threads, *(_id(answer, "run_id") for answer in made)]


def _id(answer: tuple[int, bytes, float], name: str) -> str:
    return str(json.loads(answer[1])[name])


class _Source:
    """A limited number of attacks that many threads draw from."""

    def __init__(self, drawn: Iterator[Attack], remaining: int) -> None:
        self._drawn = drawn
        self._lock = threading.Lock()
        self.remaining = remaining

    def next(self) -> Attack | None:
        with self._lock:
            if self.remaining == 0:
                return None
            self.remaining -= 1
            return next(self._drawn)


def _attack(service: Service, source: _Source, clients: int) -> Verdict:
    """Send all of the source's requests from that number of threads."""
    verdict = Verdict()
    addresses = [(urlsplit(url).hostname, urlsplit(url).port) for url in service.urls]
    threads = [
        threading.Thread(target=_client, args=(addresses[n % len(addresses)], source, verdict))
        for n in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return verdict


def _client(address: tuple[str, int], source: _Source, verdict: Verdict) -> None:
    sock: socket.socket | None = None
    while (attack := source.next()) is not None:
        sock = sock or socket.create_connection(address, timeout=TIMEOUT_SECONDS)
        began = time.perf_counter()
        try:
            status, keeps = _exchange(sock, attack)
        except (OSError, http.client.HTTPException) as error:
            # A server may close a connection that was idle, or that it will read no more from.
            verdict.faults.append(f"{type(error).__name__}: {attack.description}")
            keeps = False
        else:
            verdict.add(attack, status, time.perf_counter() - began)
        if not keeps:
            sock.close()
            sock = None
    if sock is not None:
        sock.close()


def _exchange(sock: socket.socket, attack: Attack) -> tuple[int, bool]:
    """Send a request and read the whole response; returns its status and "connection is open"."""
    # A request that is refused before all of it was read has a response all the same.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(attack.content)
    response = http.client.HTTPResponse(sock, method=attack.method)
    response.begin()
    while response.status == 100:
        response.begin()
    response.read()
    keeps = not response.will_close and not attack.is_last
    response.close()
    return response.status, keeps


if __name__ == "__main__":
    sys.exit(main())
