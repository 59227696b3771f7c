"""Resources of a service and of its servers at a moment."""

import threading
import traceback
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import psutil
from sqlalchemy import text

from arkloop.shared.storage.connections import Connections
from bench.service import Service

ROLES = ("web", "worker", "postgres", "redis")
_TABLES = text("""
SELECT CASE WHEN relname ~ '^run_events' THEN 'run_events' ELSE relname END AS name,
    sum(n_live_tup)::bigint AS live, sum(n_dead_tup)::bigint AS dead,
    sum(pg_total_relation_size(relid))::bigint AS bytes
FROM pg_stat_user_tables GROUP BY 1
""")
#: What is kept for the retention is aged, so that as much is deleted as is created. A delivery that
#: is pending stays: its webhook would not be sent, and be lost.
_AGE = (
    "UPDATE runs SET ended_at = ended_at - interval '91 days'"
    " WHERE ended_at BETWEEN now() - interval '1 day' AND now() - make_interval(secs => :kept)",
    "UPDATE webhook_deliveries SET created_at = created_at - interval '91 days'"
    " WHERE state <> 'pending' AND created_at"
    " BETWEEN now() - interval '1 day' AND now() - make_interval(secs => :kept)",
    "UPDATE forgotten_events SET collect_at = now() - interval '2 min' WHERE collect_at > now()",
)
_WAL = text("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint")
_SESSIONS = text("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")


class Sampler:
    """Samples that are taken in a thread of their own, one at a time: the load does not wait.

    One that fails is added to `faults`.
    """

    def __init__(self, take: Callable[..., None], faults: Counter[str]) -> None:
        self._take, self._faults = take, faults
        self._thread: threading.Thread | None = None

    @property
    def is_idle(self) -> bool:
        """True if the last sample is taken, or has failed."""
        return self._thread is None or not self._thread.is_alive()

    def begin(self, *args: Any) -> None:
        """Take a sample with these arguments."""
        self._thread = threading.Thread(target=self._run, args=args, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the sample that is being taken, if any."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, *args: Any) -> None:
        try:
            self._take(*args)
        except Exception as error:  # whatever it is, growth would not be seen
            traceback.print_exc()
            self._faults[f"a sample failed: {type(error).__name__}"] += 1


def sample(service: Service, connections: Connections, metrics_port: int) -> dict[str, float]:
    """Return the numbers by name; those that count from the start begin with `total`."""
    numbers: dict[str, float] = {}
    for name, process in _processes(service):
        numbers[f"memory of {name}, MiB"] = process.memory_full_info().uss / 2**20
        # One process may open a connection more than another, which then needs one less.
        files = f"files of {name.partition(' ')[0]}"
        numbers[files] = numbers.get(files, 0) + process.num_fds()
    numbers["memory of a process of Postgres, MiB"] = _backends(service)
    for role in ROLES:
        numbers[f"total CPU of {role}, s"] = service.cpu(role)
    info: Mapping[str, Any] = connections.redis.info()
    numbers["Redis memory, MiB"] = info["used_memory"] / 2**20
    numbers["Redis connections"] = info["connected_clients"]
    cancels = sum(1 for _ in connections.redis.scan_iter("*:cancel", count=1000))
    numbers["keys of cancelled runs"] = cancels  # they live for an hour, so for that long they grow
    numbers["Redis keys"] = connections.redis.dbsize() - cancels
    with connections.reading() as sql:
        numbers["Postgres connections"] = sql.scalar(_SESSIONS) or 0
        numbers["total WAL, MiB"] = (sql.scalar(_WAL) or 0) / 2**20
        for table in sql.execute(_TABLES):
            numbers[f"rows of {table.name}"] = table.live
            numbers[f"dead rows of {table.name}"] = table.dead
            numbers[f"size of {table.name}, MiB"] = table.bytes / 2**20
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=60) as answer:
        numbers["metrics, KiB"] = len(answer.read()) / 1024
    return numbers


def age(connections: Connections, kept_seconds: float) -> None:
    """Let what ended longer ago than that be beyond the retention."""
    with connections.transaction() as tx:
        for statement in _AGE:
            parameters = {"kept": kept_seconds} if ":kept" in statement else {}
            tx.sql.execute(text(statement), parameters)


def _processes(service: Service) -> Iterator[tuple[str, psutil.Process]]:
    for role in ("web", "worker"):
        for number, pid in enumerate(service.serving(role), 1):
            yield f"{role} {number}", psutil.Process(pid)
    for number, pid in enumerate(service.pids["web"], 1):
        yield f"gunicorn {number}", psutil.Process(pid)
    yield "redis", psutil.Process(service.redis.pid)


def _backends(service: Service) -> float:
    """Return the MiB of private memory of Postgres' processes, on average."""
    found: list[float] = []
    for process in psutil.Process(service.postgres.pid).children():
        with suppress(psutil.NoSuchProcess):  # one that vacuumed
            found.append(process.memory_full_info().uss / 2**20)
    return sum(found) / len(found)
