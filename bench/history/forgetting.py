"""The time that deleting old runs takes, and its effect on clients that read lists meanwhile."""

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import event, func, select

from arkloop.shared.runs import retention
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.postgres import MAINTENANCE_TIMEOUTS
from arkloop.shared.storage.tables.runs import forgotten_events, runs
from bench.figure import Figure, Limit, percentile
from bench.history.lists import Lists, milliseconds, owner_of
from bench.history.seeding import History
from bench.service import Service


def measure(service: Service, written: History, number: int) -> list[Figure]:
    """Delete the oldest runs, whole days of them and about `number`, and read the first page of
    the runs again and again meanwhile.
    """
    connections = service.connect()
    with connections.reading() as sql:
        cut = sql.scalar(
            select(runs.c.ended_at)
            .where(runs.c.ended_at.is_not(None))
            .order_by(runs.c.ended_at)
            .offset(number - 1)
            .limit(1)
        )
        assert cut is not None
        days = round((datetime.now(UTC) - cut) / timedelta(days=1))
        old = runs.c.ended_at < func.now() - timedelta(days=days)
        number = sql.execute(select(func.count()).select_from(runs).where(old)).scalar_one()
    own = replace(connections, settings=replace(connections.settings, retention_days=days))
    lists = Lists(service, written)
    reader = owner_of(written.main)
    quiet = _page_times(lists, reader, lambda number: number < 300)
    bits: list[float] = []
    done = threading.Event()
    forgetting = threading.Thread(target=_forget_all, args=(own, bits, done))
    began = time.perf_counter()
    forgetting.start()
    busy = _page_times(lists, reader, lambda _number: not done.is_set())
    seconds = time.perf_counter() - began
    lists.close()
    with connections.reading() as sql:
        left = sql.scalar(select(func.count()).select_from(runs))
    scale = ("runs stored", float(written.runs))
    return [
        Figure(
            name=f"forget {number:,} runs with their events",
            unit="runs/s",
            numbers={"rate": number / seconds},
            count=number,
            scale=scale,
            note=f"{left:,} runs are left",
        ),
        Figure(
            name="forget old runs: one transaction",
            unit="ms",
            numbers={**milliseconds(bits), "max": max(bits) * 1000},
            count=len(bits),
            scale=scale,
        ),
        Figure(
            name="GET /v1/runs while runs are forgotten",
            unit="ms",
            numbers=milliseconds(busy),
            count=len(busy),
            limit=Limit(name="while none are", of="p99", value=percentile(quiet, 0.99) * 1000),
            scale=scale,
        ),
    ]


def _page_times(lists: Lists, reader: Any, go_on: Any) -> list[float]:
    waited: list[float] = []
    while go_on(len(waited)):
        began = time.perf_counter()
        lists.page(reader, "/v1/runs")
        waited.append(time.perf_counter() - began)
        time.sleep(0.005)  # what is measured is waiting, not a full load
    return waited


def _forget_all(connections: Connections, bits: list[float], done: threading.Event) -> None:
    """Delete in passes until nothing is left; `bits` gets the seconds of each transaction."""
    own = connections.with_pool(application="bench", size=1, timeouts=MAINTENANCE_TIMEOUTS)
    _time_transactions(own, bits)
    old = select(runs.c.id).where(
        runs.c.ended_at < func.now() - timedelta(days=connections.settings.retention_days)
    )
    # Nobody reads those runs; how long it takes is not to depend on a rest of a minute.
    retention.READERS_LEAVE_SECONDS = 0
    try:
        while True:
            retention.forget(own)
            with own.reading() as sql:
                if not (
                    sql.scalar(old.limit(1))
                    or sql.scalar(select(forgotten_events.c.run_id).limit(1))
                ):
                    return
    finally:
        own.engine.dispose()
        done.set()


def _time_transactions(connections: Connections, bits: list[float]) -> None:
    began = [0.0]

    def begin(_sql: Any) -> None:
        began[0] = time.perf_counter()

    def commit(_sql: Any) -> None:
        bits.append(time.perf_counter() - began[0])

    event.listen(connections.engine, "begin", begin)
    event.listen(connections.engine, "commit", commit)
