"""The overhead of metrics and spans: the CPU of a request and of a run, with and without them.

Web processes of one service take turns in short batches; workers do, each in a service of its own.
CPU time is what the kernel has counted. Other load changes it as well, by cold caches, but that of
neighbours in turn alike: what counts is the median of their ratios, with its interval of 95 %.

Two processes of the same program differ by some percent, by the layout of their memory. So spans
are compared within one process, which records every other turn: its requests are in a trace that
the sampler keeps, those between in one that it does not.
"""

import math
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice, pairwise
from pathlib import Path

from arkloop.cli.dev.embedded_server import free_port
from bench import span_costs
from bench.conversations import prepare, wait_for_ends
from bench.figure import Figure
from bench.http_clients import Loop, Request, Target, call_all
from bench.service import Service

CLIENTS = 8
BATCH = 100
BATCHES = 40  # of each process
SHORT_BATCHES = 2
RUNS = 100  # of each worker in each of the rounds
ROUNDS = 32
SHORT_RUNS = 50
SHORT_ROUNDS = 2
AT_MOST = 1.03
#: After it the spans of a turn are sent: the export waits for more of them for a second.
SENT_SECONDS = 1.2

OFF = "neither"
KINDS = (OFF, "metrics", "spans", "metrics and spans")

#: Of half of all traces: by their last 16 digits.
_HALF = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}
_RECORDED, _UNRECORDED = (f"00-{'1' * 16}{digit * 16}-{'2' * 16}-01" for digit in "0f")


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
    """Measure requests, then runs, and first what their spans take by themselves."""
    yield from span_costs.measure()
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
        environ |= _HALF
        environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{collector}"
    return environ


def _requests(kinds: Mapping[str, Mapping[str, str]], batches: int) -> Iterator[Figure]:
    with Service(web=0, workers=0) as service:
        for environ in kinds.values():
            service.start("web", environ)
            service.wait_for_web(service.urls[-1])
        urls = dict(zip(kinds, service.urls, strict=True))
        pids = dict(zip(kinds, service.serving("web"), strict=True))
        loop, first = Loop(), [Target(service.urls[0], service.api_key)]
        count = len(kinds) * (batches + _COLD) * BATCH
        threads = prepare(loop, first, count, "hello")
        for name, requests in (
            ("create a run", [("POST", f"/v1/threads/{one}/runs", {}) for one in threads]),
            ("read a thread", [("GET", f"/v1/threads/{one}", None) for one in threads]),
        ):
            left: Iterator[Request] = iter(requests)
            turns = _Turns(pids, BATCH)
            for number in range(batches + _COLD):
                for kind in _in_turn(kinds, number):
                    with turns.next(kind, number) as traceparent:
                        target = Target(urls[kind], service.api_key, traceparent=traceparent)
                        answers = call_all(
                            loop, [target], list(islice(left, BATCH)), connections=CLIENTS
                        )
                    assert {status for status, _, _ in answers} <= {200, 201}
            yield from turns.figures(f"{name}: CPU of web")


def _runs(kinds: Mapping[str, Mapping[str, str]], rounds: int, runs: int) -> Iterator[Figure]:
    with ExitStack() as at_exit:
        services = {
            kind: at_exit.enter_context(Service(web=1, workers=1, environ=environ))
            for kind, environ in kinds.items()
        }
        turns = _Turns({kind: one.serving("worker")[0] for kind, one in services.items()}, runs)
        loop = Loop()
        for number in range(rounds + _COLD):
            for kind in _in_turn(kinds, number):
                service = services[kind]
                url, key = service.urls[0], service.api_key
                threads = prepare(loop, [Target(url, key)], runs, "hello")
                requests: list[Request] = [("POST", f"/v1/threads/{t}/runs", {}) for t in threads]
                with turns.next(kind, number) as traceparent:
                    target = Target(url, key, traceparent=traceparent)
                    call_all(loop, [target], requests, connections=CLIENTS)
                    wait_for_ends(service.connect())
        yield from turns.figures("execute a run: CPU of the worker")


def _in_turn(kinds: Mapping[str, object], number: int) -> Sequence[str]:
    """Return the kinds, each round beginning with another one."""
    names = list(kinds)
    first = number % len(names)
    return names[first:] + names[:first]


#: Rounds that are left out: processes are cold, and one of two is recorded.
_COLD = 2


class _Turns:
    """The CPU of each kind of process by its turns, with what it does until its next one.

    Spans are encoded and sent up to a second later, while it is another's turn.
    """

    def __init__(self, pids: Mapping[str, int], of: int) -> None:
        """Begin with nothing; `of` is the number of requests or runs in a turn."""
        self._pids, self._of = pids, of
        self._read: dict[str, list[float]] = {kind: [] for kind in pids}
        self._ended = dict.fromkeys(pids, 0.0)

    @contextmanager
    def next(self, kind: str, number: int) -> Iterator[str]:
        """Make the turn of this kind in a round; yields the `traceparent` of its requests."""
        self._begin(kind)
        yield _RECORDED if _is_recorded(number) else _UNRECORDED
        self._ended[kind] = time.monotonic()

    def _begin(self, kind: str) -> None:
        time.sleep(max(0.0, self._ended[kind] + SENT_SECONDS - time.monotonic()))
        self._read[kind].append(_cpu(self._pids[kind]))

    def figures(self, name: str) -> Iterator[Figure]:
        """Compare all with the first, and spans with the turns that were not recorded."""
        for kind in self._pids:
            self._begin(kind)  # and end its last turn
        spent = {
            kind: [(after - before) * 1000 / self._of for before, after in pairwise(read)]
            for kind, read in self._read.items()
        }
        rounds = range(_COLD, len(spent[OFF]))
        recorded = [number for number in rounds if _is_recorded(number)]
        others = [number for number in rounds if not _is_recorded(number)]
        for kind, compared, own, without in (
            ("metrics", OFF, rounds, rounds),
            ("spans", "spans", recorded, others),
            ("metrics and spans", OFF, recorded, recorded),
        ):
            base = [spent[compared][number] for number in without]
            of_kind = (spent[kind][number] for number in own)
            ratios = sorted(one / other for one, other in zip(of_kind, base, strict=True))
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
                note=f"{statistics.median(base):.3f} ms without",
            )


def _is_recorded(number: int) -> bool:
    """Return whether a round is: the first of two and the second of two in turn."""
    return (number + number // 2) % 2 == 0


def _cpu(pid: int) -> float:
    """Return the seconds of CPU of all threads, to the nanosecond; `psutil` has hundredths."""
    spent = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # it has just ended
            spent += int((thread / "schedstat").read_text().split()[0])
    return spent / 1e9
