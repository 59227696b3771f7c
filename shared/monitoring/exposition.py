"""The address at which Prometheus reads the metrics of all processes of a host.

Each process writes its counts to files of its own in one folder, as the library does it for servers
of several processes, and each of them listens on the one port: whichever gets the request adds all
files up. So a host has one address, whatever number of processes it has and which of them live.
"""

import fcntl
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from arkloop.shared import config, metrics
from arkloop.shared.errors import Unavailable
from arkloop.shared.monitoring import measurements
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.postgres import OF_MAINTENANCE

log = logging.getLogger(__name__)

#: Where the library looks for the folder, when it is imported.
_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_LOCK = ".lock"


def start(connections: Connections) -> None:
    """Count from now on, and answer Prometheus, if the settings say so; once per process."""
    settings = connections.settings
    if not settings.metrics_port:
        return
    folder = Path(settings.metrics_dir or _default_folder(settings.metrics_port))
    _enter(folder)
    config.export(_VARIABLE, str(folder))
    import prometheus_client

    for metric in metrics.all_metrics():
        metric.enable(prometheus_client)
    own = connections.with_pool(application="arkloop-metrics", size=1, limits=OF_MAINTENANCE)
    address = (settings.metrics_host, settings.metrics_port)
    try:
        server = _Server(address, _handler(own, folder))
    except OSError as error:
        # It still counts, and the others of this host show that.
        log.error("metrics: cannot listen on %s port %d: %s", *address, error)
        return
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


def _default_folder(port: int) -> str:
    return f"{tempfile.gettempdir()}/arkloop-metrics-{os.getuid()}-{port}"


_held: list[int] = []  # descriptors of locks, for as long as the process lives


def _enter(folder: Path) -> None:
    """Use the folder together with the other processes; the first one empties it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        for file in folder.glob("*.db"):
            file.unlink(missing_ok=True)
    fcntl.flock(lock, fcntl.LOCK_SH)
    _held.append(lock)


class _Server(ThreadingHTTPServer):
    allow_reuse_port = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)


def _handler(connections: Connections, folder: Path) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds for a request to arrive

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            from prometheus_client import CONTENT_TYPE_LATEST

            body = exposed(connections, folder)
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE_LATEST)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Log no requests, as web does not."""

    return Handler


def exposed(connections: Connections, folder: Path) -> bytes:
    """Return what Prometheus reads: the counts of all processes, and the measurements."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    _forget_dead_gauges(folder)
    registry = CollectorRegistry()
    # The library does not annotate it, in this version.
    MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call,unused-ignore]
    registry.register(_Measured(connections))
    return generate_latest(registry)


def _forget_dead_gauges(folder: Path) -> None:
    """Delete the gauges of processes that are gone; what they have counted stays."""
    for file in folder.glob("gauge_live*.db"):
        pid = file.stem.rpartition("_")[2]
        if not Path("/proc", pid).exists() and Path("/proc/self").exists():
            file.unlink(missing_ok=True)


class _Measured:
    """A collector of what is measured in Postgres."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        try:
            measured = measurements.current(self._connections)
        except Unavailable as error:
            log.warning("metrics without measurements: %s", error.__cause__)
            return
        data = measured.data
        queue = GaugeMetricFamily(
            "arkloop_queued_runs", "Queued runs, by the queued runs of their org.", labels=["crowd"]
        )
        orgs = GaugeMetricFamily(
            "arkloop_queued_orgs", "Orgs with queued runs, by their number.", labels=["crowd"]
        )
        oldest = GaugeMetricFamily(
            "arkloop_oldest_queued_seconds", "How long the oldest has waited.", labels=["crowd"]
        )
        found = {row["crowd"]: row for row in data["queue"]}
        for crowd in ("1", "2-10", "11-100", "101+"):
            row = found.get(crowd, {"runs": 0, "orgs": 0, "oldest_seconds": 0})
            queue.add_metric([crowd], row["runs"])
            orgs.add_metric([crowd], row["orgs"])
            oldest.add_metric([crowd], row["oldest_seconds"])
        yield from (queue, orgs, oldest)
        states = GaugeMetricFamily("arkloop_runs", "Runs that have not ended.", labels=["state"])
        for state in ("queued", "executing", "waiting", "suspended", "pending", "scheduled"):
            states.add_metric([state], data["states"].get(state, 0))
        yield states
        for name, text, value in (
            ("arkloop_agent_queued_runs", "Queued runs for agent workers.", data["agent_queue"]),
            ("arkloop_workers_alive", "Worker processes that are heard.", data["workers"]),
            ("arkloop_agent_workers_alive", "Agent workers with a lease.", data["agent_workers"]),
            (
                "arkloop_webhook_deliveries_due",
                "Deliveries whose next attempt is due.",
                data["webhooks"]["deliveries"],
            ),
            (
                "arkloop_webhook_oldest_due_seconds",
                "How long the oldest of them has been due.",
                data["webhooks"]["oldest_seconds"],
            ),
            (
                "arkloop_measured_timestamp_seconds",
                "When Postgres was asked for these.",
                measured.at.timestamp(),
            ),
        ):
            yield GaugeMetricFamily(name, text, value=value)
