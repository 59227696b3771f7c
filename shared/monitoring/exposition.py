"""The address at which Prometheus reads the metrics of all processes of a host.

Each process counts in a file of its own in one folder, and each of them listens on the one port:
whichever gets the request adds all files up. So a host has one address, whatever number of
processes it has and which of them live.
"""

import errno
import fcntl
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from math import inf
from operator import add
from pathlib import Path
from typing import Any

from arkloop.shared import folders, metrics
from arkloop.shared.config import InvalidSettings, Settings
from arkloop.shared.errors import Unavailable
from arkloop.shared.metrics import Metric
from arkloop.shared.monitoring import count_files, measurements
from arkloop.shared.native_threads import new_lock
from arkloop.shared.outage_log import OutageLog, reason_of
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.postgres import MAINTENANCE_TIMEOUTS

log = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: The pause before another attempt to listen: a process of the release before may have the port.
LISTEN_SECONDS = 10.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # of the disk, or of this user's part of it
_FOREIGN = "it belongs to another user"
_STATES = ("queued", "executing", "waiting", "suspended", "pending", "scheduled")


def check(settings: Settings) -> None:
    """Check that the folder of the counts can be used; a process creates it as it starts.

    Raises:
        InvalidSettings: it cannot be written or created, or does not respond, if the settings say
            that there are counts.
    """
    if not settings.metrics_port:
        return
    folder = folder_of(settings)
    try:
        why = folders.unwritable(folder)
    except TimeoutError as error:
        raise _unusable(settings, str(error)) from None
    if why is None and os.path.exists(folder) and _is_foreign(folder):
        why = _FOREIGN
    if why is not None:
        raise _unusable(settings, why)


def prepare(settings: Settings) -> None:
    """Create the folder of the counts, if the settings say that there are any.

    Where the disk has no room for one, a process starts all the same, and `count` reports it.

    Raises:
        InvalidSettings
    """
    check(settings)
    if not settings.metrics_port:
        return
    try:
        _create(folder_of(settings))
    except OSError as error:  # such as one of a file system that has no folders of users
        if error.errno in _NO_ROOM:
            return
        raise _unusable(settings, error.strerror or str(error)) from error


def _unusable(settings: Settings, why: str) -> InvalidSettings:
    name = "TMPDIR" if settings.metrics_dir is None else "ARKLOOP_METRICS_DIR"
    folder = str(folder_of(settings).absolute())
    return InvalidSettings(f"{name}: {folder!r} cannot be used: {why}")


def count(settings: Settings) -> None:
    """Count from now on, if the settings say so; once per process.

    Call it before anything begins that a gauge counts, such as the use of a connection: its end
    would be counted alone.
    """
    if not settings.metrics_port:
        return
    folder = folder_of(settings)
    try:
        _enter(folder)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        log.error("metrics: this process counts nothing: %s", error)
        return
    file, lock = count_files.CountFile(folder), new_lock()
    for metric in metrics.all_metrics():
        metric.enable(file.room, lock)


def listen(connections: Connections) -> None:
    """Answer Prometheus, if the settings say so; call it after `count`, once per process."""
    settings = connections.settings
    if not settings.metrics_port:
        return
    own = connections.with_pool(
        application="arkloop-metrics", size=1, timeouts=MAINTENANCE_TIMEOUTS
    )
    address = (settings.metrics_host, settings.metrics_port)
    handler = _handler(own, folder_of(settings))
    threading.Thread(target=_serve, args=(address, handler), name="metrics", daemon=True).start()


def probe(settings: Settings) -> None:
    """Bind the address as a process does. Other processes of the same user do not interfere.

    Raises:
        OSError: no process can listen there, or another program already listens without
            SO_REUSEPORT.
        TypeError: the host name cannot be encoded.
    """
    with socket.socket(_address_family(settings.metrics_host)) as bound:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            bound.setsockopt(socket.SOL_SOCKET, option, 1)
        bound.bind((settings.metrics_host, settings.metrics_port))


def _serve(address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
    outage = OutageLog(log, "the address of the metrics")
    while True:
        try:
            server = _Server(address, handler)
        except (OSError, TypeError) as error:
            outage.failed("metrics: cannot listen on %s port %d: %s", *address, error)
            time.sleep(LISTEN_SECONDS)
        else:
            break
    outage.worked()
    server.serve_forever()


def folder_of(settings: Settings) -> Path:
    if settings.metrics_dir is not None:
        return Path(settings.metrics_dir)
    parent = Path(settings.temporary_dir)
    if not os.path.isdir(parent):  # as `tempfile` does; root would create it
        parent = Path(Settings.temporary_dir)
    return parent / f"arkloop-metrics-{os.getuid()}-{settings.metrics_port}"


_held: list[int] = []  # descriptors of locks, for as long as the process lives


def _enter(folder: Path) -> None:
    """Use the folder together with the other processes; the first one empties it."""
    _create(folder)
    # Of the folder itself: a file would be old one day, and what tidies /tmp deletes old files but
    # leaves a folder that is locked.
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        for file in folder.glob(f"*{count_files.SUFFIX}"):
            file.unlink(missing_ok=True)
    fcntl.flock(lock, fcntl.LOCK_SH)
    _held.append(lock)


def _create(folder: Path) -> None:
    """Create the folder, unless it is there. Raises: OSError, also if it is another user's."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _is_foreign(folder):
        raise PermissionError(_FOREIGN)


def _is_foreign(folder: Path) -> bool:
    return folder.stat().st_uid != os.getuid()


def _address_family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class _Server(ThreadingHTTPServer):
    allow_reuse_port = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = _address_family(address[0])
        super().__init__(address, handler)


def _handler(connections: Connections, folder: Path) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds for a request to arrive

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            body = exposed(connections, folder)
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Log no requests, as web does not."""

    return Handler


@dataclass(frozen=True, slots=True)
class _Family:
    """A metric as Prometheus reads it: its samples, by the ending of their name and by labels."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    samples: dict[tuple[str, tuple[str, ...]], float] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        yield f"# HELP {self.name} {self.help}"
        yield f"# TYPE {self.name} {self.kind}"
        for (ending, values), number in self.samples.items():
            names = self.labels[: len(values)] if ending != "_bucket" else (*self.labels, "le")
            pairs = [f'{name}="{_escaped(text)}"' for name, text in zip(names, values, strict=True)]
            described = f"{{{','.join(pairs)}}}" if pairs else ""
            yield f"{self.name}{ending}{described} {number!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def exposed(connections: Connections, folder: Path) -> bytes:
    """Return what Prometheus reads: the counts of all processes, and the measurements."""
    families = [*_counted(folder), *_measured(connections)]
    return "".join(f"{line}\n" for one in families for line in one.lines()).encode()


def _counted(folder: Path) -> Iterator[_Family]:
    """Add up what all processes have counted; gauges of those that are gone are left out."""
    known = {metric.name: metric for metric in metrics.all_metrics()}
    sums: dict[str, dict[tuple[str, ...], list[float]]] = {name: {} for name in known}
    for series in count_files.read(folder):
        metric = known.get(series.name)
        # Another release on this host may count something else under the name.
        if metric is None or (len(series.labels), len(series.cells)) != (
            len(metric.labels),
            metric.cells,
        ):
            continue
        if metric.kind == "Gauge" and not series.is_alive:
            continue
        cells = sums[metric.name].setdefault(series.labels, [0.0] * metric.cells)
        cells[:] = map(add, cells, series.cells)
    for name, of_labels in sums.items():
        yield _family(known[name], of_labels)


def _family(metric: Metric, sums: Mapping[tuple[str, ...], list[float]]) -> _Family:
    if metric.kind != "Histogram":
        name = f"{metric.name}_total" if metric.kind == "Counter" else metric.name
        family = _Family(name, metric.kind.lower(), metric.help, metric.labels)
        family.samples.update({("", values): cells[0] for values, cells in sums.items()})
        return family
    family = _Family(metric.name, "histogram", metric.help, metric.labels)
    for values, (total, *counts) in sums.items():
        for bound, count in zip((*metric.buckets, inf), accumulate(counts), strict=True):
            le = "+Inf" if bound == inf else repr(bound)
            family.samples["_bucket", (*values, le)] = count
        family.samples["_count", values] = count
        family.samples["_sum", values] = total
    return family


def _measured(connections: Connections) -> list[_Family]:
    """Return what is measured in Postgres; nothing while it cannot be asked."""
    try:
        measured = measurements.current(connections)
    except Unavailable as error:
        log.warning("metrics without measurements: %s", reason_of(error))
        return []
    data = measured.data
    found = {row["crowd"]: row for row in data["queue"]}
    crowds = {
        crowd: found.get(crowd, {"runs": 0, "orgs": 0, "oldest_seconds": 0})
        for crowd in ("1", "2-10", "11-100", "101+")
    }
    return [
        *(
            _gauge(name, text, {crowd: row[column] for crowd, row in crowds.items()}, "crowd")
            for name, text, column in (
                ("arkloop_queued_runs", "Queued runs, by the queued runs of their org.", "runs"),
                ("arkloop_queued_orgs", "Orgs with queued runs, by their number.", "orgs"),
                (
                    "arkloop_oldest_queued_seconds",
                    "How long the oldest has waited.",
                    "oldest_seconds",
                ),
            )
        ),
        _gauge(
            "arkloop_runs",
            "Runs that have not ended.",
            {state: data["states"].get(state, 0) for state in _STATES},
            "state",
        ),
        *(
            _gauge(name, text, {None: value})
            for name, text, value in (
                (
                    "arkloop_agent_queued_runs",
                    "Queued runs for agent workers.",
                    data["agent_queue"],
                ),
                ("arkloop_workers_alive", "Worker processes that are heard.", data["workers"]),
                (
                    "arkloop_agent_workers_alive",
                    "Agent workers with a lease.",
                    data["agent_workers"],
                ),
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
            )
        ),
    ]


def _gauge(name: str, text: str, numbers: Mapping[str | None, float], *labels: str) -> _Family:
    samples: dict[tuple[str, tuple[str, ...]], float] = {
        ("", () if value is None else (value,)): float(number) for value, number in numbers.items()
    }
    return _Family(name, "gauge", text, labels, samples)
