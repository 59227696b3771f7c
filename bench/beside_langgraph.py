"""Creates, first deltas and cancels beside LangGraph's development server (`langgraph dev`).

    make bench-langgraph

The development server keeps everything in memory, and a crash takes along what it has not saved
for ten seconds. One client asks both in turn; both answer by a model in their own process, with one
word.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from arkloop.cli.dev.embedded_server import free_port
from bench.conversations import PREPARING, script, targets_of, wait_for_ends
from bench.figure import Figure, Limit, percentile
from bench.frameworks import dev_server
from bench.http_clients import Caller, Loop, Request, Target, call_all
from bench.machine import commit, machine
from bench.service import ROOT, Service
from bench.table import table

CLIENTS = 32
WARM_UP_RUNS, WARM_UP_ANSWERS = 100, 10
#: Between two measurements, so that what the last one left to do is done.
REST_SECONDS = 0.02
#: From the first words of a run to its cancel.
CANCEL_AFTER_SECONDS = 0.03
#: Half of what the answer would take.
UNCANCELLED_SECONDS = 5.0
_PATIENCE_SECONDS = 60.0
_READ_BYTES = 1 << 18
_LAST_CHUNK = b"0\r\n\r\n"
#: The message that is answered with 500 words: by our model, and by `bench/frameworks/words.py`.
_AT_LENGTH = script({"count": 500, "delay_ms": 20})
_LANGGRAPHS_AT_LENGTH = "Speak at length."


@dataclass(frozen=True, slots=True)
class Api:
    """The requests of a server, by thread or run, and what to look for in its streams."""

    create: Callable[[str], Request]
    #: As `create`, with a response that is the run's stream.
    stream: Callable[[str], bytes]
    stream_at_length: Callable[[str], bytes]
    cancel: Callable[[str, str], Request]
    delta: bytes
    run_id: re.Pattern[bytes]


@dataclass(slots=True)
class Server:
    """A running server, and what was measured with it."""

    targets: list[Target]
    api: Api
    #: Create as many threads.
    threads: Callable[[int], list[str]]
    wait_for_ends: Callable[[], object]
    rates: list[float] = field(default_factory=list)
    finished: list[float] = field(default_factory=list)
    # Seconds, of each.
    creates: list[float] = field(default_factory=list)
    deltas: list[float] = field(default_factory=list)
    cancels: list[float] = field(default_factory=list)

    def forget(self) -> None:
        """Forget what was measured: it was the warm-up."""
        for values in (self.rates, self.finished, self.creates, self.deltas, self.cancels):
            values.clear()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=600, help="created in a round")
    parser.add_argument("--answers", type=int, default=20, help="followed in a round")
    options = parser.parse_args()
    if not dev_server.is_installed():
        parser.error("langgraph dev is missing: `make bench-langgraph` installs it")
    print(json.dumps({"commit": commit(), "machine": machine()}), flush=True)
    figures = list(measure(options.rounds, options.runs, options.answers))
    print(table({"beside langgraph dev": figures}))
    return 1 if any(figure.missed for figure in figures) else 0


def measure(rounds: int, runs: int, answers: int) -> Iterator[Figure]:
    """Measure two web processes and a worker beside one development server, in turn."""
    loop = Loop()
    with Service(web=2, workers=1) as service, _langgraph(loop) as peer:
        own = _own(loop, service)
        for server in (own, peer):
            _create(loop, server, WARM_UP_RUNS)
            _first_deltas(loop, server, WARM_UP_ANSWERS)
            _cancels(loop, server, WARM_UP_ANSWERS)
            server.forget()
        for number in range(rounds):
            for server in (own, peer) if number % 2 == 0 else (peer, own):
                _create(loop, server, runs)
                _first_deltas(loop, server, answers)
                _cancels(loop, server, answers)
    yield _rate("create runs, 32 clients", own.rates, peer.rates, runs, {"ratio": 1.2})
    yield _times("create runs, 32 clients: POST → response", own.creates, peer.creates)
    yield _rate("first POST → last end", own.finished, peer.finished, runs, {})
    yield _times("POST with a stream → first delta", own.deltas, peer.deltas)
    yield _times("POST of a cancel → the stream's end", own.cancels, peer.cancels)


# ---- the two servers -----------------------------------------------------------------


def _own(loop: Loop, service: Service) -> Server:
    connections, targets = service.connect(), targets_of(service)

    def stream(content: str, thread: str) -> bytes:
        path, body = f"/v1/threads/{thread}/runs", {"message": content}
        return targets[0].request("POST", path, body, accept="text/event-stream")

    def threads(count: int) -> list[str]:
        requests: list[Request] = [("POST", "/v1/threads", {})] * count
        made = call_all(loop, targets, requests, connections=PREPARING)
        return [json.loads(answer)["id"] for _, answer, _ in made]

    api = Api(
        create=lambda thread: ("POST", f"/v1/threads/{thread}/runs", {"message": "hello"}),
        stream=partial(stream, "hello"),
        stream_at_length=partial(stream, _AT_LENGTH),
        cancel=lambda _thread, run_id: ("POST", f"/v1/runs/{run_id}:cancel", {}),
        delta=b'"type":"message.delta"',
        run_id=re.compile(rb"/v1/runs/([0-9a-f-]{36})"),
    )
    return Server(
        targets,
        api,
        threads,
        lambda: wait_for_ends(connections),
    )


@contextmanager
def _langgraph(loop: Loop) -> Iterator[Server]:
    """Start it with its defaults: one process, which carries out one run at a time."""
    port = free_port()
    graphs = {"words": f"{ROOT}/bench/frameworks/words.py:graph"}
    target = Target(f"http://127.0.0.1:{port}", "-")

    def body(content: str) -> dict[str, Any]:
        message = {"role": "user", "content": content}
        return {
            "assistant_id": "words",
            "input": {"messages": [message]},
            "stream_mode": ["messages-tuple"],
        }

    def ask(method: str, path: str, content: Any) -> Any:
        [(status, answer, _)] = call_all(loop, [target], [(method, path, content)], connections=1)
        assert status < 300, answer
        return json.loads(answer)

    def threads(count: int) -> list[str]:
        requests: list[Request] = [("POST", "/threads", {})] * count
        made = call_all(loop, [target], requests, connections=PREPARING)
        return [json.loads(answer)["thread_id"] for _, answer, _ in made]

    def until_idle() -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while ask("POST", "/threads/search", {"status": "busy", "limit": 1}):
            if time.monotonic() > deadline:
                raise TimeoutError("runs of langgraph dev have not ended")
            loop.pause(0.05)

    api = Api(
        create=lambda thread: ("POST", f"/threads/{thread}/runs", body("hello")),
        stream=lambda thread: target.request(
            "POST", f"/threads/{thread}/runs/stream", body("hello")
        ),
        stream_at_length=lambda thread: target.request(
            "POST", f"/threads/{thread}/runs/stream", body(_LANGGRAPHS_AT_LENGTH)
        ),
        cancel=lambda thread, run_id: ("POST", f"/threads/{thread}/runs/{run_id}/cancel", {}),
        delta=b'"type":"AIMessageChunk"',
        run_id=re.compile(rb'"run_id":"([0-9a-f-]{36})"'),
    )
    with tempfile.TemporaryDirectory(prefix="arkloop-langgraph-") as folder:
        process = dev_server.start(Path(folder), port, graphs, {})
        try:
            yield Server([target], api, threads, until_idle)
        finally:
            dev_server.end(process)


# ---- what is measured ----------------------------------------------------------------


def _create(loop: Loop, server: Server, count: int) -> None:
    requests = [server.api.create(thread) for thread in server.threads(count)]
    began = time.perf_counter()
    answers = call_all(loop, server.targets, requests, connections=CLIENTS)
    server.rates.append(count / (time.perf_counter() - began))
    assert {True} == {status < 300 for status, _, _ in answers}
    server.creates += [seconds for _, _, seconds in answers]
    server.wait_for_ends()
    server.finished.append(count / (time.perf_counter() - began))


def _first_deltas(loop: Loop, server: Server, count: int) -> None:
    for thread in server.threads(count):
        stream = Stream(loop, server, server.api.stream(thread))
        loop.until(lambda stream=stream: stream.ended_at, _PATIENCE_SECONDS, "the end")  # type: ignore[misc]  # its default has no type
        assert stream.delta_at is not None, bytes(stream.text)
        server.deltas.append(stream.delta_at - stream.sent_at)
        loop.pause(REST_SECONDS)


def _cancels(loop: Loop, server: Server, count: int) -> None:
    for thread in server.threads(count):
        stream = Stream(loop, server, server.api.stream_at_length(thread))
        loop.until(lambda stream=stream: stream.delta_at, _PATIENCE_SECONDS, "the first words")  # type: ignore[misc]  # its default has no type
        loop.pause(CANCEL_AFTER_SECONDS)
        found = server.api.run_id.search(stream.text)
        assert found is not None, bytes(stream.text)
        request = server.targets[0].request(*server.api.cancel(thread, found[1].decode()))
        caller, statuses = Caller(loop, server.targets[0]), list[int]()
        sent_at = time.perf_counter()
        caller.call(request, lambda status, *_, statuses=statuses: statuses.append(status))
        loop.until(lambda stream=stream: stream.ended_at, _PATIENCE_SECONDS, "the end")  # type: ignore[misc]  # its default has no type
        loop.until(lambda statuses=statuses: statuses, _PATIENCE_SECONDS, "the response")  # type: ignore[misc]  # its default has no type
        assert stream.ended_at is not None
        assert statuses[0] < 300, statuses
        assert stream.ended_at - sent_at < UNCANCELLED_SECONDS, "it was not cancelled"
        server.cancels.append(stream.ended_at - sent_at)
        loop.pause(REST_SECONDS)
        caller.close()


class Stream:
    """The stream that the response to a request is, on a connection that is open before."""

    def __init__(self, loop: Loop, server: Server, request: bytes) -> None:
        self.text = bytearray()
        self.delta_at: float | None = None
        self.ended_at: float | None = None
        self._loop, self._delta = loop, server.api.delta
        self._sock = server.targets[0].connect()
        loop.add(self._sock, self._read)
        self.sent_at = time.perf_counter()
        self._sock.send(request)

    def _read(self) -> None:
        data = self._sock.recv(_READ_BYTES)
        now = time.perf_counter()
        self.text += data
        if self.delta_at is None and self._delta in self.text:
            self.delta_at = now
        if not data or self.text.endswith(_LAST_CHUNK):
            self.ended_at = now
            self._loop.remove(self._sock)
            self._sock.close()


def _rate(
    name: str, own: list[float], peers: list[float], count: int, at_least: Mapping[str, float]
) -> Figure:
    own_rate, peers_rate = (percentile(rates, 0.5) for rates in (own, peers))
    return Figure(
        name=name,
        unit="runs/s",
        numbers={"rate": own_rate},
        count=count,
        at_least=at_least,
        limit=Limit(name="langgraph dev", of="rate", value=peers_rate),
        note="2 web processes, 1 worker",
    )


def _times(name: str, own: list[float], peers: list[float]) -> Figure:
    parts = {"p50": 0.5, "p99": 0.99}
    numbers = {part: percentile(own, share) * 1000 for part, share in parts.items()}
    theirs = {part: percentile(peers, share) * 1000 for part, share in parts.items()}
    return Figure(
        name=name,
        unit="ms",
        numbers=numbers,
        count=len(own),
        limit=Limit(name="langgraph dev", of="p50", value=theirs["p50"]),
        note=f"langgraph dev: p99 {theirs['p99']:.1f}",
    )


if __name__ == "__main__":
    sys.exit(main())
