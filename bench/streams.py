"""Thousands of open streams of one web process: their cost, and how soon they hear of events;
beside them a server that does nothing else than hold streams.
"""

import contextlib
import json
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from os import kill
from uuid import UUID

import psutil

from arkloop.cli.dev.embedded_server import free_port
from arkloop.shared.events import event_log
from arkloop.shared.storage.connections import Connections
from bench import stored_streams
from bench.conversations import PREPARING
from bench.figure import Figure, Limit, percentile
from bench.http_clients import Follower, Loop, Request, Target, call_all
from bench.service import ROOT, Service

#: Milliseconds between two deltas of an active run: 2,000 events a second of all of them.
DELAY_MS = 100
OPEN_SECONDS = 60.0
#: Clients that have connected and not been answered: fewer than the server's backlog.
AT_ONCE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The size of a measurement, and its length in seconds."""

    idle: tuple[int, ...]  # streams
    many: int  # streams of a storm of reconnections, and of the measurements of delivery
    active: int  # runs that make events meanwhile
    settle_seconds: float
    idle_seconds: float
    measured_seconds: float
    head_start: float  # seconds until the models speak: enough for all followers to be there


FULL = Size(
    idle=(500, 2000, 5000),
    many=5000,
    active=200,
    settle_seconds=8.0,  # longer than until idle streams are parked
    idle_seconds=8.0,
    measured_seconds=8.0,
    head_start=10.0,
)
SHORT = Size(
    idle=(50, 100),
    many=200,
    active=20,
    settle_seconds=0.5,
    idle_seconds=1.0,
    measured_seconds=1.0,
    head_start=2.0,
)
_DELTA = re.compile(rb'"content":"\d+:(\d+\.\d+) "')


def raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# ---- idle ----------------------------------------------------------------------------


def idle(*, short: bool = False) -> list[Figure]:
    """Measure what each of 500, 2,000 and 5,000 idle streams costs a web process."""
    size = SHORT if short else FULL
    raise_file_limit()
    limits = _bare_server(size.idle)
    figures: list[Figure] = []
    with Service(web=1, workers=0) as service:
        runs = stored_streams.waiting(service.connect(), service.owner, size.idle[-1])
        target = Target(service.urls[0], service.api_key)
        [pid] = service.serving("web")
        with _followers() as (loop, followers):
            call_all(loop, [target], [("GET", "/v1/me", None)] * 50)
            _open(loop, target, followers, [str(run) for run in runs[:100]])
            for follower in followers:
                follower.close()
            followers.clear()
            loop.pause(size.settle_seconds)
            before = service.memory("web")[0]
            for number, (limit_kb, limit_ms) in zip(size.idle, limits, strict=True):
                wanted = [str(run) for run in runs[len(followers) : number]]
                seconds = _open(loop, target, followers, wanted)
                loop.pause(size.settle_seconds)
                used = service.cpu("web")
                loop.pause(size.idle_seconds)
                used = service.cpu("web") - used
                each = (service.memory("web")[0] - before) / 1024 / number
                scale = ("streams", float(number))
                figures += [
                    Figure(
                        name="idle stream: memory of the web process",
                        unit="KB",
                        numbers={"each": each},
                        count=number,
                        at_most={"each": 14.0 if number >= 2000 else 20.0},
                        limit=Limit(name="bare gevent server", of="each", value=limit_kb),
                        scale=scale,
                    ),
                    Figure(
                        name="idle streams: connections to Redis",
                        unit="connections",
                        numbers={"all": service.redis_connections(pid)},
                        count=number,
                        at_most={"all": 12},
                        scale=scale,
                    ),
                    Figure(
                        name="idle streams: CPU of the web process",
                        unit="%",
                        numbers={"all": used / size.idle_seconds * 100},
                        count=number,
                        scale=scale,
                    ),
                    Figure(
                        name="open a stream, as many at once as are missing",
                        unit="ms",
                        numbers={"each": seconds * 1000 / len(wanted)},
                        count=len(wanted),
                        limit=Limit(name="bare gevent server", of="each", value=limit_ms),
                        scale=scale,
                    ),
                ]
    return figures


def _bare_server(streams: Sequence[int]) -> list[tuple[float, float]]:
    """Measure (KB, ms to open) of each stream of a server that does nothing else."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.baselines.sse_server", str(port)], cwd=ROOT
    )
    found: list[tuple[float, float]] = []
    try:
        target = Target(f"http://127.0.0.1:{port}", "-")
        _wait_for(target)
        with _followers() as (loop, followers):
            _open(loop, target, followers, ["-"] * 100)
            for follower in followers:
                follower.close()
            followers.clear()
            loop.pause(0.5)
            before = psutil.Process(process.pid).memory_full_info().uss
            for number in streams:
                wanted = ["-"] * (number - len(followers))
                seconds = _open(loop, target, followers, wanted)
                loop.pause(0.5)
                after = psutil.Process(process.pid).memory_full_info().uss
                kilobytes = (after - before) / 1024 / number
                found.append((kilobytes, seconds * 1000 / len(wanted)))
    finally:
        process.terminate()
        process.wait()
    return found


# ---- delivery ------------------------------------------------------------------------


@dataclass
class _Delivery:
    """Seconds from the model's word to the client's receipt, of all deltas after `since`."""

    since: float = float("inf")
    seconds: list[float] = field(default_factory=list)

    def take(self, _follower: Follower, data: bytes, _at: float) -> None:
        now = time.time()
        if now > self.since:
            self.seconds += [now - float(made) for made in _DELTA.findall(data)]


def delivery(*, short: bool = False) -> list[Figure]:
    """Measure 5,000 open streams, 2,000 events a second: each run with one follower, then with
    25.
    """
    size = SHORT if short else FULL
    raise_file_limit()
    environ = {"ARKLOOP_WORKER_CONCURRENCY": "500"}
    with Service(web=1, workers=1, environ=environ) as service:
        return [_deliver(service, size, each) for each in (1, size.many // size.active)]


def _deliver(service: Service, size: Size, followers_each: int) -> Figure:
    idle_ones = size.many - size.active * followers_each
    target = Target(service.urls[0], service.api_key)
    connections = service.connect()
    delivered = _Delivery()
    with _followers() as (loop, followers):
        if idle_ones:
            waiting = stored_streams.waiting(connections, service.owner, idle_ones)
            _open(loop, target, followers, [str(run) for run in waiting])
        seconds = size.settle_seconds + size.measured_seconds + 4
        hang = 2.0 if followers_each == 1 else size.head_start
        active = _start(loop, target, size.active, round(seconds * 1000 / DELAY_MS), hang)
        began = time.monotonic()
        wanted = [run for run in active for _ in range(followers_each)]
        _open(loop, target, followers, wanted, after_seq=0, on_data=delivered.take)
        # Their models begin to speak when all are followed.
        loop.pause(max(0, began + hang - time.monotonic()) + size.settle_seconds)
        used = service.cpu("web")
        delivered.since = time.time()
        loop.pause(size.measured_seconds)
        delivered.since = float("inf")
        used = service.cpu("web") - used
        loop.until(lambda: all(one.end for one in followers[idle_ones:]), 60, "ends")
        assert not any(one.holes for one in followers)
    rate = len(delivered.seconds) / size.measured_seconds
    cpu = f"web process {used / size.measured_seconds * 100:.0f} % CPU"
    return Figure(
        name=f"delivery to {size.many:,} streams, {followers_each} of each active run",
        unit="ms",
        numbers={
            "p50": percentile(delivered.seconds, 0.5) * 1000,
            "p99": percentile(delivered.seconds, 0.99) * 1000,
            "max": max(delivered.seconds) * 1000,
        },
        count=len(delivered.seconds),
        at_most={"p99": 10.0} if followers_each == 1 else {},
        note=f"1 web process, 1 worker; {rate:.0f} deliveries/s; {cpu}",
    )


# ---- reconnections -------------------------------------------------------------------


def storm(*, short: bool = False) -> list[Figure]:
    """Kill one of two web processes with 5,000 streams; all reconnect to the other at once."""
    size = SHORT if short else FULL
    raise_file_limit()
    with Service(web=2, workers=1, environ={"ARKLOOP_WORKER_CONCURRENCY": "500"}) as service:
        first, second = (Target(url, service.api_key) for url in service.urls)
        connections = service.connect()
        with _followers() as (loop, followers):
            waiting = stored_streams.waiting(connections, service.owner, size.many - size.active)
            _open(loop, first, followers, [str(run) for run in waiting])
            active = _start(loop, second, size.active, 60 if short else 200, 0)
            _open(loop, first, followers, active, after_seq=0)
            loop.pause(size.settle_seconds)
            kill(service.serving("web")[0], signal.SIGKILL)
            loop.until(lambda: not any(one.is_open for one in followers), 60, "cut")
            began = time.perf_counter()
            caught_up: list[float] = []
            back = _reconnect(loop, second, followers, connections, caught_up, began)
            followers += back
            loop.until(lambda: all(one.end for one in back[-size.active :]), 60, "ends")
            lost = sum(one.holes for one in followers)
            ended = _last_seqs(connections, [one.run_id for one in back])
            lost += sum(ended[one.run_id] - one.cursor for one in back)
    return [
        Figure(
            name=f"{size.many:,} clients reconnect at once: caught up",
            unit="s",
            numbers={"p50": percentile(caught_up, 0.5), "max": max(caught_up)},
            count=len(caught_up),
            at_most={"max": 10.0},
            note=f"to 1 web process, while {size.active} runs make 10 events/s each",
        ),
        Figure(
            name=f"{size.many:,} clients reconnect at once: lost events",
            unit="events",
            numbers={"all": lost},
            count=len(caught_up),
            at_most={"all": 0},
            is_promise=True,
        ),
    ]


def _reconnect(
    loop: Loop,
    target: Target,
    cut: Sequence[Follower],
    connections: Connections,
    caught_up: list[float],
    began: float,
) -> list[Follower]:
    """Reconnect each after its cursor; `caught_up` gets when it had what was there at the cut."""
    wanted = _last_seqs(connections, [one.run_id for one in cut])
    late: set[Follower] = set()

    def look(one: Follower, _data: bytes, at: float) -> None:
        if one in late and one.cursor >= wanted[one.run_id]:
            late.remove(one)
            caught_up.append(at - began)

    back: list[Follower] = []
    for one in cut:
        again = Follower(loop, target, one.run_id, after_seq=one.cursor, on_data=look)
        late.add(again)
        back.append(again)
        if len(back) % 100 == 0:
            loop.turn(0)

    def all_there() -> bool:
        # Who missed nothing is there when the stream is open.
        for one in [one for one in late if one.opened_at and one.cursor >= wanted[one.run_id]]:
            late.remove(one)
            caught_up.append(float(one.opened_at or 0) - began)
        return not late

    loop.until(all_there, OPEN_SECONDS, "all caught up")
    return back


def _last_seqs(connections: Connections, run_ids: Sequence[str]) -> dict[str, int]:
    with connections.reading() as sql:
        found = event_log.last_seqs(sql, [UUID(run_id) for run_id in run_ids])
    return {str(run_id): seq for run_id, seq in found.items()}


# ---- inside --------------------------------------------------------------------------


@contextlib.contextmanager
def _followers() -> Iterator[tuple[Loop, list[Follower]]]:
    loop, followers = Loop(), list[Follower]()
    try:
        yield loop, followers
    finally:
        for follower in followers:
            follower.close()


def _open(
    loop: Loop,
    target: Target,
    followers: list[Follower],
    run_ids: Sequence[str],
    *,
    after_seq: int = stored_streams.EVENTS_OF_WAITING,
    on_data: Callable[[Follower, bytes, float], None] | None = None,
) -> float:
    """Open one more follower of each; returns the seconds until the last response."""
    began = time.perf_counter()
    first = len(followers)
    for run_id in run_ids:
        follower = Follower(loop, target, run_id, after_seq=after_seq, on_data=on_data)
        followers.append(follower)
        if len(followers) % 50 == 0:
            loop.turn(0)
            while len(followers) > AT_ONCE and followers[-AT_ONCE].opened_at is None:
                loop.turn()
    loop.until(lambda: all(one.opened_at for one in followers[first:]), OPEN_SECONDS, "open")
    return time.perf_counter() - began


def _start(loop: Loop, target: Target, runs: int, deltas: int, hang: float) -> list[str]:
    """Start the active runs: `hang` seconds of nothing, then `deltas` deltas, `DELAY_MS` apart.
    Runs that begin together are claimed together; their models are not in step with each other.
    """
    count = {"count": deltas, "delay_ms": DELAY_MS}
    scripts = [
        json.dumps({"script": [{"hang": hang + DELAY_MS / 1000 * run / runs}, count]})
        for run in range(runs)
    ]
    threads = _create(loop, target, [("POST", "/v1/threads", {})] * runs, "id")
    said: list[Request] = [
        ("POST", f"/v1/threads/{one}/messages", {"content": script})
        for one, script in zip(threads, scripts, strict=True)
    ]
    _create(loop, target, said, "id")
    begun: list[Request] = [("POST", f"/v1/threads/{one}/runs", {}) for one in threads]
    return _create(loop, target, begun, "run_id")


def _create(loop: Loop, target: Target, requests: Sequence[Request], field: str) -> list[str]:
    """Return `field` of each answer. Raises RuntimeError: a request is refused."""
    answers = call_all(loop, [target], requests, connections=PREPARING)
    for status, body, _ in answers:
        if status != 201:
            raise RuntimeError(f"a request was refused with {status}: {body[:300]!r}")
    return [json.loads(body)[field] for _, body, _ in answers]


def _wait_for(target: Target) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            target.connect().close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
