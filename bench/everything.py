"""A service with everything on beside one with everything off: both do the same, in turn.

On are limits for the org and its API keys, row-level security, metrics, and a webhook for each end
of a run; fairness is a part of both. Each service has its own Postgres and Redis. A turn is over
when the webhooks of its runs have arrived, so that they cost no time of the other service.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
from sqlalchemy import text

from arkloop.cli.dev.embedded_server import free_port
from arkloop.shared.accounts import org_settings
from arkloop.shared.org_limits import LIMITS
from bench.conversations import script
from bench.create import CLIENTS, create
from bench.figure import Figure, Limit, percentile
from bench.http_clients import Loop
from bench.latency import Client
from bench.row_security import put_up
from bench.service import ROOT, Service

ROUNDS = 16
RUNS = 600
SINGLE = 40
SHORT_ROUNDS = 1
SHORT_RUNS = 100
SHORT_SINGLE = 5
OFF, ON = "all off", "all on"
_HIGH = 10_000_000
_PATIENCE_SECONDS = 120.0
_PENDING = text("SELECT count(*) FROM webhook_deliveries WHERE state = 'pending'")
_DELIVERED = text("SELECT count(*) FROM webhook_deliveries WHERE state = 'delivered'")
#: What a service with everything on may lose of a rate, and what its times may take longer.
LEAST, MOST = 0.9, 1 / 0.9
_STREAMING = script({"count": 500, "delay_ms": 20})


def measure(*, short: bool = False) -> Iterator[Figure]:
    """Measure a web process and a worker of each."""
    rounds, runs, single = (
        (SHORT_ROUNDS, SHORT_RUNS, SHORT_SINGLE) if short else (ROUNDS, RUNS, SINGLE)
    )
    with ExitStack() as at_exit:
        off = _Side(at_exit.enter_context(Service(web=1, workers=1)))
        on = _Side(_with_everything(at_exit))
        for number in range(rounds + 1):
            for side in (off, on) if number % 2 else (on, off):
                side.play(runs, single)
                if number == 0:
                    side.forget()  # it was a warm-up
        yield from _figures(off, on)


def _with_everything(at_exit: ExitStack) -> Service:
    """Start a service with everything on, and the receiver of its webhooks."""
    folder = at_exit.enter_context(tempfile.TemporaryDirectory(prefix="arkloop-everything-"))
    port = free_port()
    command = [sys.executable, "-m", "bench.baselines.receiver", str(port)]
    receiver = subprocess.Popen(command, cwd=ROOT)
    at_exit.callback(receiver.wait)
    at_exit.callback(receiver.terminate)
    environ = {
        "ARKLOOP_ALLOWED_NETWORKS": "127.0.0.0/8",
        "ARKLOOP_ENCRYPTION_KEY": "0" * 64,
        "ARKLOOP_METRICS_PORT": str(free_port()),
        "ARKLOOP_METRICS_DIR": folder,
    }
    service = at_exit.enter_context(Service(web=0, workers=0, environ=environ))
    of_role = {"ARKLOOP_DATABASE_URL": put_up(service)}
    for role in ("worker", "web"):
        service.start(role, of_role)
    service.wait_for_web(service.urls[0])
    with service.connect().transaction() as tx:
        org_settings.change(tx, service.owner.org_id, dict.fromkeys(LIMITS, _HIGH))
    made = httpx.post(
        f"{service.urls[0]}/v1/webhook-endpoints",
        json={"url": f"http://127.0.0.1:{port}/"},
        headers={"Authorization": f"Bearer {service.api_key}"},
        trust_env=False,
    )
    made.raise_for_status()
    return service


class _Side:
    """A service, and what its turns took."""

    def __init__(self, service: Service) -> None:
        self._service, self._connections = service, service.connect()
        self._loop, self._client = Loop(), Client(service)
        self.ended = self.lost = 0
        self.forget()

    def forget(self) -> None:
        """Forget what was measured."""
        self.created: list[float] = []  # requests a second
        self.finished: list[float] = []  # runs a second
        self.seconds: list[float] = []  # of each POST
        self.first: list[float] = []  # seconds to a first delta
        self.cancelled: list[float] = []  # seconds from the request to the end

    def play(self, runs: int, single: int) -> None:
        """Create runs by many clients, and then by one that follows and cancels some of them."""
        found = create(self._loop, self._service, self._connections, runs, CLIENTS)
        self.created.append(found.rate)
        self.finished.append(found.finished_rate)
        self.seconds += found.seconds
        self.lost += found.lost
        self._rest()
        self._one_by_one(single)
        self.ended += runs + 2 * single
        self._rest()

    def webhooks(self) -> int:
        """Return how many webhooks have arrived."""
        with self._connections.reading() as sql:
            return int(sql.scalar(_DELIVERED) or 0)

    def _one_by_one(self, single: int) -> None:
        client = self._client
        for thread in client.threads(single, "hello"):
            run = client.start(thread)
            client.finish(run)
            self.first.append(run.first_at["message.delta"] - run.sent_at)
            client.rest()
        for thread in client.threads(single, _STREAMING):
            self.cancelled.append(client.cancel(thread, "message.delta"))
            client.rest()

    def _rest(self) -> None:
        """Wait until no webhook is pending."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            with self._connections.reading() as sql:
                pending = sql.scalar(_PENDING)
            if not pending:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"{pending} webhooks are pending")
            time.sleep(0.05)


def _figures(off: _Side, on: _Side) -> Iterator[Figure]:
    for name, unit, of_off, of_on in (
        ("create runs", "requests/s", off.created, on.created),
        ("first POST → last end", "runs/s", off.finished, on.finished),
    ):
        yield Figure(
            name=f"{name}, {CLIENTS} clients, {ON}",
            unit=unit,
            numbers={"rate": statistics.median(of_on)},
            count=len(on.seconds),
            at_least={"ratio": LEAST},
            limit=Limit(name=OFF, of="rate", value=statistics.median(of_off)),
            note=f"rounds {min(of_on):.0f} to {max(of_on):.0f}; "
            f"{OFF} {min(of_off):.0f} to {max(of_off):.0f}",
        )
    for name, of_off, of_on in (
        ("POST → first message.delta", off.first, on.first),
        ("cancel → run.cancelled", off.cancelled, on.cancelled),
    ):
        yield Figure(
            name=f"{name}, {ON}",
            unit="ms",
            numbers={"p50": percentile(of_on, 0.5) * 1000, "p99": percentile(of_on, 0.99) * 1000},
            count=len(of_on),
            at_most={"ratio": MOST},
            limit=Limit(name=OFF, of="p50", value=percentile(of_off, 0.5) * 1000),
            note=f"p99 {percentile(of_off, 0.99) * 1000:.1f} {OFF}",
        )
    yield Figure(
        name="lost runs; webhooks that have not arrived",
        unit="",
        numbers={"runs": off.lost + on.lost, "webhooks": abs(on.ended - on.webhooks())},
        count=off.ended + on.ended,
        at_most={"runs": 0, "webhooks": 0},
        is_promise=True,
    )
