"""Clients for benchmarks of the whole system: they start runs, and note when events arrive."""

import asyncio
import itertools
import json
import os
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.figure import percentile
from chaos.clients.client import (
    FAILURES,
    Access,
    Client,
    NoAnswer,
    OpenStream,
    Pauses,
    Request,
    Tally,
)
from chaos.clients.event_stream import Frames
from chaos.clients.follower import EVENTS, TERMINAL
from chaos.journal import Journal
from chaos.system.stack import Stack

LOOK_SECONDS = 0.01


class TooLate(Exception):
    """The end of the time in which something had to happen."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An event, with the client's time of its arrival."""

    at: float
    seq: int
    type: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection whose first bytes are there."""

    at: float
    url: str


class Clients:
    """The common parts of all clients of one stack; each is a `Client` of its own."""

    def __init__(self, stack: Stack) -> None:
        self.rng = random.Random()
        self._access = Access(lambda: stack.urls, Journal(), Tally())
        self._token = stack.api_key()
        self._client = self.one()

    def one(self) -> Client:
        """Make a new client; it begins with any of the servers."""
        return Client(self._access, self._token, self.rng)

    async def post(self, template: str, object_id: str = "", body: Any = None) -> Any:
        """Return the body of the first conclusive response. Raises AssertionError if that is an
        error.
        """
        answer = await self.one().until(Request("POST", template, object_id, body))
        assert answer.status < 300, f"{template}: {answer.status} {answer.code}"
        return answer.body

    async def start_run(self, *steps: Mapping[str, Any]) -> str:
        """Start a run that plays these steps, in a thread of its own, and return its id."""
        thread = str((await self.post("/v1/threads", body={}))["id"])
        said = {"content": json.dumps({"script": steps})}
        await self.post("/v1/threads/{id}/messages", thread, said)
        run = await self.post("/v1/threads/{id}/runs", thread, {"route_id": "scripted"})
        return str(run["run_id"])


class Watcher:
    """Follows one run to its end. What arrived stays in `seen` and `opened`."""

    def __init__(self, clients: Clients, run_id: str, *, after_seq: int = 0) -> None:
        self.run_id = run_id
        self.seen: list[Seen] = []
        self.opened: list[Opened] = []
        self.is_connected = False
        self._cursor = after_seq
        self._client = clients.one()
        self._rng = clients.rng

    @property
    def has_ended(self) -> bool:
        return bool(self.seen) and self.seen[-1].type in TERMINAL

    def first(self, *types: str, since: float = 0.0) -> Seen | None:
        """Return the first event after that time, of one of these types if there are any."""
        for seen in self.seen:
            if seen.at > since and (not types or seen.type in types):
                return seen
        return None

    async def watch(self) -> None:
        """Watch the run; when the stream is lost, the other server is asked at once."""
        pauses = Pauses(self._rng)
        while not self.has_ended:
            query = f"?after_seq={self._cursor}"
            try:
                stream = await self._client.stream(Request("GET", EVENTS, self.run_id, query=query))
            except NoAnswer:
                stream = None
            if not isinstance(stream, OpenStream):
                self._client.go_elsewhere()
                await pauses.next()
                continue
            pauses = Pauses(self._rng)
            try:
                await self._read(stream)
            except (*FAILURES, TimeoutError):
                self._client.go_elsewhere()
            finally:
                self.is_connected = False
                stream.close(rudely=True)

    async def _read(self, stream: OpenStream) -> None:
        frames = Frames()
        is_first = True
        while (data := await stream.read()) is not None:
            now = time.perf_counter()
            if is_first:
                self.opened.append(Opened(now, stream.url))
                self.is_connected, is_first = True, False
            for frame in frames.feed(data):
                event = json.loads(frame.line)
                self._cursor = frame.id
                self.seen.append(Seen(now, frame.id, event["type"], event["data"]))


async def until(check: Callable[[], object], seconds: float, what: str) -> None:
    """Wait for `check`. Raises TooLate: `what` did not come true."""
    deadline = time.perf_counter() + seconds
    while not check():
        if time.perf_counter() > deadline:
            raise TooLate(f"{what}: not within {seconds:g} s")
        await asyncio.sleep(LOOK_SECONDS)


def gaps(watchers: Sequence[Watcher], since: float) -> list[float]:
    """Return the times between an event and the next, of each run."""
    found: list[float] = []
    for watcher in watchers:
        times = [seen.at for seen in watcher.seen if seen.at > since]
        found += [later - earlier for earlier, later in itertools.pairwise(times)]
    return found


@dataclass(frozen=True)
class Figure:
    """A measurement, in seconds; `target` is a percentile by name with its limit."""

    name: str
    values: Sequence[float]
    targets: Mapping[str, float]
    rounds: int = 1

    def row(self) -> dict[str, Any]:
        """Return it as JSON; without any value it misses every target."""
        parts = {"p50": 0.5, "p95": 0.95, "max": 1.0}
        values = list(self.values)
        reached = {
            name: round(percentile(values, part), 3) if values else None
            for name, part in parts.items()
        }
        missed = [
            name
            for name, limit in self.targets.items()
            if (value := reached[name]) is None or value > limit
        ]
        return {
            "figure": self.name,
            "count": len(values),
            "rounds": self.rounds,
            **reached,
            "targets": dict(self.targets),
            "missed": missed,
        }


def show(figure: Figure) -> None:
    """Print one line of it, as soon as it is known, next to the result."""
    row = figure.row()
    numbers = "".join(
        f"  {name} {'-' if row[name] is None else format(row[name], '7.3f')}"
        for name in ("p50", "p95", "max")
    )
    limits = ", ".join(f"{name} ≤ {limit:g}" for name, limit in figure.targets.items())
    verdict = f"  {'MISSED' if row['missed'] else 'reached'}: {limits}" if limits else ""
    print(
        f"{figure.name:52} n={row['count']:<5} rounds {row['rounds']:<3}{numbers} s{verdict}",
        flush=True,
    )


def machine() -> dict[str, Any]:
    """Describe the machine of the figures, and its load in the last minute."""
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    }
