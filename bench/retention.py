"""The deletion of old events: by the drop of their partition, and bit by bit.

The same number of events twice, in two partitions of one table, each with what says that its runs
were forgotten. One client appends events to young runs and reads others after a cursor all the
time, as the service does. Autovacuum is off: what vacuuming costs is measured by itself.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from sqlalchemy import create_engine

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.cli.dev.embedded_redis import EmbeddedRedis
from arkloop.shared.config import Settings
from arkloop.shared.events import event_log
from arkloop.shared.events.partitions import Partition
from arkloop.shared.events.stored_events import encode
from arkloop.shared.events.types import MessageDelta
from arkloop.shared.ids import new_id
from arkloop.shared.runs import retention
from arkloop.shared.storage import schema
from arkloop.shared.storage.connections import Connections, connect
from arkloop.shared.storage.postgres import MAINTENANCE_TIMEOUTS
from arkloop.shared.times import EPOCH
from bench.figure import Figure, Limit, percentile
from bench.history import past_partitions
from bench.history.event_lines import events_of
from bench.service import POSTGRES

EVENTS_A_RUN = 100
#: Between two statements of the client.
PAUSE_SECONDS = 0.005


@dataclass(slots=True)
class Client:
    """Appends to young runs and reads them, until `stop`; `waited` has the seconds of each."""

    connections: Connections
    waited: dict[str, list[float]] = field(default_factory=lambda: {"append": [], "read": []})
    _stopped: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        assert self._thread is not None
        self._thread.join()

    def take(self) -> dict[str, list[float]]:
        """Return the times since the last call."""
        waited, self.waited = self.waited, {"append": [], "read": []}
        return waited

    def _run(self) -> None:
        run_id, seq = new_id(), 0
        while not self._stopped.wait(PAUSE_SECONDS):
            if seq > 1000:
                run_id, seq = new_id(), 0
            batch = [encode(seq + n, MessageDelta(f"{n}"), EPOCH) for n in range(1, 21)]
            began = time.perf_counter()
            with self.connections.transaction() as tx:
                tx.sql.exec_driver_sql(event_log._STORE, event_log.columns([(run_id, batch)]))
            appended = time.perf_counter()
            with self.connections.reading() as sql:
                event_log.read_table(sql, run_id, seq)
            self.waited["append"].append(appended - began)
            self.waited["read"].append(time.perf_counter() - appended)
            seq += 20


@dataclass(frozen=True, slots=True)
class Cost:
    """Costs of a deletion."""

    seconds: float
    longest: float  # of its transactions
    wal: int
    waited: dict[str, list[float]]


def measure(*, short: bool) -> Iterator[Figure]:
    """Measure 10 million events, or 100,000."""
    events = 100_000 if short else 10_000_000
    with tempfile.TemporaryDirectory(prefix="arkloop-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        options = {**POSTGRES, "autovacuum": "off"}
        with (
            EmbeddedPostgres(Path(folder) / "postgres", options=options) as server,
            EmbeddedRedis(Path(folder) / "redis") as redis,
        ):
            yield from _measure(server.url, redis.url, events)


def _measure(url: str, redis_url: str, events: int) -> Iterator[Figure]:
    engine = create_engine(url)
    schema.migrate(engine)
    engine.dispose()
    plain = psycopg.connect(url.replace("+psycopg", "", 1), autocommit=True)
    dropped, collected, *_ = past_partitions.make(plain, days=180)
    for partition, collect_at in ((dropped, "infinity"), (collected, "-infinity")):
        _seed(plain, partition, events, collect_at)
    plain.execute("CHECKPOINT")
    settings = Settings(database_url=url, redis_url=redis_url, broker_url=redis_url, jwt_secret="-")
    connections = connect(settings, application="bench", timeouts=MAINTENANCE_TIMEOUTS, pool_size=2)
    client = Client(connect(settings, application="bench-client", pool_size=1))
    client.start()
    time.sleep(3.0)
    quiet = client.take()

    def vacuum() -> None:
        plain.execute("VACUUM run_events")

    def cost(work: Callable[[], float]) -> Cost:
        client.take()
        before, began = _wal(plain), time.perf_counter()
        longest = work()
        seconds = time.perf_counter() - began
        return Cost(seconds, longest, _wal(plain) - before, client.take())

    by_bits = cost(lambda: _repeat(connections, retention._collect_events))
    after_bits = _dead(connections)
    vacuumed = cost(lambda: _timed(vacuum))
    by_drop = cost(lambda: _repeat(connections, retention._drop_partition))
    after_drop = _dead(connections)
    client.stop()
    left = plain.execute(
        "SELECT count(*) FROM run_events WHERE run_id < %s", [collected.upper]
    ).fetchone()
    assert left == (0,), left
    yield from _figures(events, "bit by bit", by_bits, quiet, after_bits, vacuumed)
    yield from _figures(events, "drop of the partition", by_drop, quiet, after_drop, None)
    connections.close()
    client.connections.close()
    plain.close()


def _figures(
    events: int,
    way: str,
    cost: Cost,
    quiet: dict[str, list[float]],
    dead: int,
    vacuumed: Cost | None,
) -> Iterator[Figure]:
    note = f"{dead:,} dead rows"
    if vacuumed is not None:
        note += f"; their vacuum: {vacuumed.seconds:.1f} s, {vacuumed.wal / 1e6:,.0f} MB of WAL"
    yield Figure(
        name=f"delete {events:,} events: {way}",
        unit="s",
        numbers={"whole": cost.seconds, "longest transaction": cost.longest},
        count=events,
    )
    yield Figure(
        name=f"WAL of deleting {events:,} events: {way}",
        unit="MB",
        numbers={"whole": cost.wal / 1e6},
        count=events,
        note=note,
    )
    for what, waited in cost.waited.items():
        if not waited:
            continue
        numbers = {"p50": percentile(waited, 0.5), "p99": percentile(waited, 0.99)}
        yield Figure(
            name=f"{what} 20 events meanwhile: {way}",
            unit="ms",
            numbers={name: value * 1000 for name, value in {**numbers, "max": max(waited)}.items()},
            count=len(waited),
            limit=Limit(name="before", of="p99", value=percentile(quiet[what], 0.99) * 1000),
        )


def _seed(sql: psycopg.Connection[Any], partition: Partition, events: int, collect_at: str) -> None:
    """Write events of runs that are forgotten, at even distances in the partition's time."""
    assert partition.lower is not None
    number = events // EVENTS_A_RUN
    begin = partition.lower.int >> 80
    step = ((partition.upper.int >> 80) - begin) / number
    made = [
        UUID(int=begin + int(place * step) << 80 | new_id().int & (1 << 80) - 1)
        for place in range(number)
    ]
    template = "".join(events_of(str(made[0]), "2026-01-01T00:00:00.000Z", "completed", 96))
    with sql.cursor().copy("COPY run_events (run_id, seq, type, payload) FROM STDIN") as copy:
        for run_id in made:
            copy.write(template.replace(str(made[0]), str(run_id)))
    with sql.cursor().copy(
        "COPY forgotten_events (run_id, forgotten_at, collect_at) FROM STDIN"
    ) as copy:
        copy.write("".join(f"{run_id}\t2026-01-01\t{collect_at}\n" for run_id in made))
    sql.execute(f"VACUUM ANALYZE {partition.name}, forgotten_events".encode())


def _repeat(connections: Connections, some: Callable[[Any], bool]) -> float:
    """Repeat until nothing is left; returns the seconds of the longest transaction."""
    longest = 0.0
    is_left = True
    while is_left:
        began = time.perf_counter()
        with connections.transaction() as tx:
            is_left = some(tx)
        longest = max(longest, time.perf_counter() - began)
    return longest


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _wal(sql: psycopg.Connection[Any]) -> int:
    row = sql.execute("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint").fetchone()
    assert row is not None
    return int(row[0])


def _dead(connections: Connections) -> int:
    # The session that deleted reports at most once a second, and ten seconds later if it is idle.
    with connections.transaction() as tx:
        tx.sql.exec_driver_sql("SELECT pg_stat_force_next_flush()")
    with connections.transaction() as tx:
        dead = tx.sql.exec_driver_sql(
            "SELECT sum(n_dead_tup)::bigint FROM pg_stat_user_tables WHERE relname ~ '^run_events'"
        ).scalar_one()
    return int(dead)
