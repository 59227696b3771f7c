"""The overhead of metrics and spans: the CPU of a request and of a run, with and without them.

Web processes of one service take turns in short batches; workers do, each in a service of its own.
CPU time is what the kernel has counted. Other load changes it as well, by cold caches, but that of
neighbours in turn alike: what counts is the median of their ratios, with its interval of 95 %.
"""

import math
import statistics
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice, pairwise
from pathlib import Path

from arkloop.cli.dev.embedded_server import free_port
from bench.conversations import prepare, wait_for_ends
from bench.figure import Figure
from bench.http_clients import Loop, Request, Target, call_all
from bench.service import Service

CLIENTS = 8
BATCH = 100
BATCHES = 40  # of each process
SHORT_BATCHES = 2
RUNS = 100  # of each worker in each of the rounds
ROUNDS = 25
SHORT_RUNS = 50
SHORT_ROUNDS = 1
AT_MOST = 1.03

OFF = "neither"
KINDS = (OFF, "metrics", "spans", "metrics and spans")


class _Sink(BaseHTTPRequestHandler):
    """A collector that takes everything."""

    protocol_version = "HTTP/1.1"  # it keeps connections, as collectors do

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


def measure(*, short: bool = False) -> Iterator[Figure]:
    """Measure requests, then runs."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Sink) as sink, ExitStack() as at_exit:
        threading.Thread(target=sink.serve_forever, daemon=True).start()
        at_exit.callback(sink.shutdown)
        folder = at_exit.enter_context(tempfile.TemporaryDirectory())
        kinds = {kind: _environ(kind, folder, sink.server_port) for kind in KINDS}
        yield from _requests(kinds, SHORT_BATCHES if short else BATCHES)
        yield from _runs(kinds, *((SHORT_ROUNDS, SHORT_RUNS) if short else (ROUNDS, RUNS)))


def _environ(kind: str, folder: str, collector: int) -> dict[str, str]:
    environ = {}
    if "metrics" in kind:
        environ["ARKLOOP_METRICS_PORT"] = str(free_port())
        environ["ARKLOOP_METRICS_DIR"] = str(Path(folder, kind.replace(" ", "-")))
    if "spans" in kind:
        environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{collector}"
    return environ


def _requests(kinds: Mapping[str, Mapping[str, str]], batches: int) -> Iterator[Figure]:
    with Service(web=0, workers=0) as service:
        targets = {}
        for kind, environ in kinds.items():
            service.start("web", environ)
            service.wait_for_web(service.urls[-1])
            targets[kind] = Target(service.urls[-1], service.api_key)
        pids = dict(zip(kinds, service.serving("web"), strict=True))
        loop, first = Loop(), [targets[OFF]]
        count = len(kinds) * (batches + 1) * BATCH
        threads = prepare(loop, first, count, "hello")
        for name, requests in (
            ("create a run", [("POST", f"/v1/threads/{one}/runs", {}) for one in threads]),
            ("read a thread", [("GET", f"/v1/threads/{one}", None) for one in threads]),
        ):
            left: Iterator[Request] = iter(requests)
            spent = _Spent(kinds, BATCH)
            for number in range(batches + 1):
                for kind in _in_turn(kinds, number):
                    answers = call_all(
                        loop, [targets[kind]], list(islice(left, BATCH)), connections=CLIENTS
                    )
                    assert {status for status, _, _ in answers} <= {200, 201}
                    spent.add(kind, _cpu(pids[kind]))
            yield from spent.figures(f"{name}: CPU of web")


def _runs(kinds: Mapping[str, Mapping[str, str]], rounds: int, runs: int) -> Iterator[Figure]:
    spent = _Spent(kinds, runs)
    with ExitStack() as at_exit:
        services = {
            kind: at_exit.enter_context(Service(web=1, workers=1, environ=environ))
            for kind, environ in kinds.items()
        }
        loop = Loop()
        for number in range(rounds + 1):
            for kind in _in_turn(kinds, number):
                service = services[kind]
                target = [Target(service.urls[0], service.api_key)]
                threads = prepare(loop, target, runs, "hello")
                requests: list[Request] = [("POST", f"/v1/threads/{t}/runs", {}) for t in threads]
                call_all(loop, target, requests, connections=CLIENTS)
                wait_for_ends(service.connect())
                spent.add(kind, _cpu(service.serving("worker")[0]))
    yield from spent.figures("execute a run: CPU of the worker")


def _in_turn(kinds: Mapping[str, object], number: int) -> Sequence[str]:
    """Return the kinds, each round beginning with another one."""
    names = list(kinds)
    first = number % len(names)
    return names[first:] + names[:first]


class _Spent:
    """The CPU of each kind of process by rounds, with what it does between its turns.

    Spans are encoded and sent up to a second later, while it is another's turn.
    """

    def __init__(self, kinds: Iterable[str], of: int) -> None:
        """Begin with nothing; `of` is the number of requests or runs in a round."""
        self._of = of
        self._read: dict[str, list[float]] = {kind: [] for kind in kinds}

    def add(self, kind: str, seconds: float) -> None:
        """Note what the process has used until the end of its turn."""
        self._read[kind].append(seconds)

    def figures(self, name: str) -> Iterator[Figure]:
        """Compare all with the first; what came before the first turns, which are cold, is left
        out.
        """
        spent = {
            kind: [(after - before) * 1000 / self._of for before, after in pairwise(read)]
            for kind, read in self._read.items()
        }
        without = spent.pop(OFF)
        for kind, milliseconds in spent.items():
            ratios = sorted(one / other for one, other in zip(milliseconds, without, strict=True))
            middle, half = len(ratios) / 2, 0.98 * math.sqrt(len(ratios))
            yield Figure(
                name=f"{name} with {kind}",
                unit="×",
                numbers={
                    "median": statistics.median(ratios),
                    "low": ratios[max(0, math.floor(middle - half))],
                    "high": ratios[min(len(ratios) - 1, math.ceil(middle + half))],
                },
                count=len(ratios) * self._of,
                at_most={"median": AT_MOST},
                note=f"{statistics.median(without):.3f} ms without",
            )


def _cpu(pid: int) -> float:
    """Return the seconds of CPU of all threads, to the nanosecond; `psutil` has hundredths."""
    spent = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # it has just ended
            spent += int((thread / "schedstat").read_text().split()[0])
    return spent / 1e9
