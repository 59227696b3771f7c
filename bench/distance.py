"""Web and worker processes with a network between them and the stores.

First the round trips that an operation waits for, one after the other: its time with 10 ms to
Postgres and Redis and back, less its time without, divided by 10 ms. They do not depend on the
machine. Then two and four processes of each kind with 1 ms and without, each process in a network
namespace of its own where that is permitted: all that they share are the two stores.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest

from sqlalchemy import text

from arkloop.cli.dev.embedded_server import free_port
from bench.bursts import burst
from bench.conversations import script
from bench.create import create
from bench.figure import Figure, Limit, percentile
from bench.http_clients import Loop
from bench.latency import CANCEL_AFTER_SECONDS, Client
from bench.networks import own_networks
from bench.service import READY_SECONDS, ROOT, Service

#: Long enough that the machine's own times do not matter.
FAR_MS = 10.0
NEAR_MS = 1.0
OF_EACH = (2, 4)
_SAMPLES, _SHORT_SAMPLES = 40, 5
_RUNS, _SHORT_RUNS = 600, 100
_STREAMS, _SHORT_STREAMS = 200, 10
_WARM_UP = 10
_CLIENTS = 32
_LOOPBACK = "127.0.0.1"
_WORKERS = text("SELECT count(*) FROM workers")


def measure(*, short: bool = False) -> Iterator[Figure]:
    """Measure the round trips, then the rates."""
    yield from _round_trips(_SHORT_SAMPLES if short else _SAMPLES)
    for processes in OF_EACH[:1] if short else OF_EACH:
        yield from _rates(processes, short=short)


def _round_trips(samples: int) -> Iterator[Figure]:
    seconds = {}
    for milliseconds in (0.0, FAR_MS):
        with _service(1, milliseconds) as service:
            seconds[milliseconds] = _latencies(service, samples)
    for name, far in seconds[FAR_MS].items():
        near = seconds[0.0][name]
        trips = [(one - percentile(near, 0.5)) * 1000 / FAR_MS for one in far]
        yield Figure(
            name=f"round trips: {name}",
            unit="trips",
            numbers={"p10": percentile(trips, 0.1), "p50": percentile(trips, 0.5)},
            count=samples,
            note=f"{percentile(near, 0.5) * 1000:.1f} ms without,"
            f" {percentile(far, 0.5) * 1000:.1f} ms with {FAR_MS:g} ms",
        )


def _latencies(service: Service, samples: int) -> dict[str, list[float]]:
    """Return the seconds of each operation, one at a time, on a system that is idle."""
    client = Client(service)
    seconds: dict[str, list[float]] = {}

    def note(name: str, waited: float | None) -> None:
        assert waited is not None
        seconds.setdefault(name, []).append(waited)

    for number, thread in enumerate(client.threads(_WARM_UP + samples, "hello")):
        run = client.start(thread)
        client.finish(run)
        ended = run.follower.ended_at
        assert ended is not None
        if number >= _WARM_UP:
            note("POST → 201", run.answered_at - run.sent_at)
            note("POST → first message.delta", run.first_at["message.delta"] - run.sent_at)
            note("POST → run.completed", ended - run.sent_at)
            note("GET a run", client.call("GET", f"/v1/runs/{run.follower.run_id}").seconds)
            note("GET a list", client.call("GET", "/v1/runs?limit=50").seconds)
        client.rest()
    for number, thread in enumerate(
        client.threads(_WARM_UP + samples, script({"count": 500, "delay_ms": 20}))
    ):
        run = client.start(thread)
        client.until(lambda run=run: "message.delta" in run.first_at, "a delta")  # type: ignore[misc]  # its default has no type
        client.loop.pause(CANCEL_AFTER_SECONDS)
        cancel = client.call("POST", f"/v1/runs/{run.follower.run_id}:cancel", {})
        client.finish(run)
        ended = run.follower.ended_at
        assert ended is not None
        if number >= _WARM_UP:
            note("cancel → 200", cancel.seconds)
            note("cancel → run.cancelled", ended - cancel.sent_at)
        client.rest()
    client.hang_up()
    return seconds


def _rates(processes: int, *, short: bool) -> Iterator[Figure]:
    """Compare the two distances, each with a service of its own."""
    found: dict[float, dict[str, tuple[str, float]]] = {}
    lost = 0
    for milliseconds in (0.0, NEAR_MS):
        with _service(processes, milliseconds, is_apart=True) as service:
            where = "on one network" if _LOOPBACK in service.urls[0] else "in network namespaces"
            loop, connections = Loop(), service.connect()
            create(loop, service, connections, 100, _CLIENTS)  # they are cold
            runs = _SHORT_RUNS if short else _RUNS
            made = create(loop, service, connections, runs, _CLIENTS)
            streams = burst(loop, service, connections, _SHORT_STREAMS if short else _STREAMS)
        lost += made.lost + streams.lost
        found[milliseconds] = {
            "create runs": ("requests/s", made.rate),
            "create runs, p99": ("ms", made.latency["p99"]),
            "first POST → last end": ("runs/s", made.finished_rate),
            "followed runs of 2 s, p99": ("s", streams.numbers["p99"]),
        }
    for name, (unit, value) in found[NEAR_MS].items():
        yield Figure(
            name=f"{processes} of each, {NEAR_MS:g} ms: {name}",
            unit=unit,
            numbers={"value": value},
            count=_SHORT_RUNS if short else _RUNS,
            limit=Limit(name="without", of="value", value=found[0.0][name][1]),
            note=where,
        )
    yield Figure(
        name=f"{processes} of each: lost",
        unit="runs",
        numbers={"lost": lost},
        count=_SHORT_RUNS if short else _RUNS,
        at_most={"lost": 0},
        is_promise=True,
    )


@contextmanager
def _service(processes: int, milliseconds: float, *, is_apart: bool = False) -> Iterator[Service]:
    """Start as many web and worker processes, at this distance from Postgres and Redis; each in a
    network of its own if they are to be apart, and may be.
    """
    slots = {"ARKLOOP_WORKER_CONCURRENCY": "200"}
    roles = ("worker", "web") * processes
    with (
        own_networks(len(roles) if is_apart else 0) as networks,
        Service(web=0, workers=0, environ=slots) as service,
        _distance(service, milliseconds / 2000, [one.here for one in networks]) as environs,
    ):
        for role, environ, network in zip_longest(roles, environs, networks):
            service.start(role, environ or environs[0], network)
        for url in service.urls:
            service.wait_for_web(url)
        connections, deadline = service.connect(), time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            with connections.reading() as sql:
                if sql.scalar(_WORKERS) == processes:
                    break
            time.sleep(0.05)
        yield service


@contextmanager
def _distance(
    service: Service, seconds: float, addresses: Sequence[str]
) -> Iterator[Sequence[Mapping[str, str]]]:
    """Put a proxy before the stores, at each of the addresses, or at that of the loopback
    interface if there are none; yields the settings of processes behind it.
    """
    postgres, redis = free_port(), free_port()
    socket = next(service.postgres.sockets.glob(".s.PGSQL.*[0-9]"))
    command = [sys.executable, "-m", "bench.delaying_proxy", str(seconds)]
    environs, own = [], f"{_LOOPBACK}:{service.redis_port}"
    for address in addresses or [_LOOPBACK]:
        command += [f"{address}:{postgres}", str(socket)]
        command += [f"{address}:{redis}", str(service.redis_port)]
        environs.append(
            {
                "ARKLOOP_DATABASE_URL": f"postgresql://postgres@{address}:{postgres}/postgres",
                "ARKLOOP_REDIS_URL": service.redis.url.replace(own, f"{address}:{redis}"),
            }
        )
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        yield environs
    finally:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
