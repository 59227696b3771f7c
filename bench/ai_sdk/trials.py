"""Trials: pages of the AI SDK whose connections are cut while processes are killed."""

import json
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from urllib.parse import urlsplit

from bench.service import Service
from tests.ai_sdk_pages import KINDS, Pages
from tests.cutting_proxy import cutting_proxy

#: Connections that are cut per trial, and how long the longest of them gets, in bytes.
CUTS, LONGEST = 10, 3_000
#: Pages at the same time.
PAGES = 8


@dataclass(frozen=True, slots=True)
class Trial:
    """An answer to a page: what is wrong with it, and what happened meanwhile."""

    kind: str
    faults: list[str]
    cuts: int
    resumes: int
    reloads: int


def play(service: Service, trials: int, seed: int) -> Iterator[Trial]:
    """Play the trials, `PAGES` at a time, while processes are killed."""
    with Pages() as pages, disturbed(service, seed), ThreadPoolExecutor(PAGES) as pool:
        yield from pool.map(lambda n: _play(service, pages, n, seed), range(trials))


def _play(service: Service, pages: Pages, number: int, seed: int) -> Trial:
    ai, version, transport = KINDS[number % len(KINDS)]
    port = urlsplit(service.urls[0]).port
    assert port is not None
    with cutting_proxy(port, cuts=CUTS, longest=LONGEST, seed=seed + number) as proxy:
        result = pages.play(
            number,
            url=proxy.url,
            direct=service.urls[0],
            token=service.api_key,
            chat=secrets.token_urlsafe(12),
            ai=ai,
            version=version,
            transport=transport,
            text=_script(Random(seed + number)),
        )
        cuts = CUTS - proxy.cuts_left
    kind = f"{ai} {transport}"
    return Trial(kind, result["faults"], cuts, result["resumes"], result["reloads"])


def _script(chance: Random) -> str:
    """Build a script with reasoning, text, calls and, in every third, a call that is repeated."""
    words = [{"say": f"w{chance.randint(0, 999)} é\n ", "repeat": 40, "delay_ms": 12} for _ in "ab"]
    broken = [{"error": "disconnect"}] if chance.random() < 0.33 else []
    calls = {"tools": [{"tool": "calculator", "args": {"expression": e}} for e in ("6*7", "1/0")]}
    steps = [{"think": "Let me see. ", "delay_ms": 5}, words[0], *broken, calls, words[1]]
    return json.dumps({"script": steps})


@contextmanager
def disturbed(service: Service, seed: int) -> Iterator[None]:
    """Kill the worker or the web server, or empty Redis, again and again.

    The pauses are longer than a worker needs to start: else no run would ever advance.
    """
    chance, stopped = Random(seed), threading.Event()
    connections = service.connect()

    def disturb() -> None:
        while not stopped.wait(chance.uniform(8, 14)):
            match chance.choice(("worker", "web", "redis")):
                case "worker":
                    service.end("worker")
                    service.start("worker")
                case "web":
                    for pid in service.serving("web"):
                        os.kill(pid, signal.SIGKILL)  # its master starts another one
                case _:
                    connections.redis.flushall()

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
