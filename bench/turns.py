"""Shares of orgs in a long queue: weights of 3 and 1, and a single run of a third org.

Both create more runs than the worker executes meanwhile, and the single run comes in the middle.
What counts is the order in which runs started, while both orgs had some in the queue.
"""

import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from sqlalchemy import text

from arkloop.shared.accounts import org_settings
from arkloop.shared.storage.connections import Connections
from bench.conversations import script
from bench.figure import Figure
from bench.http_clients import Loop, Request, Target, call_all
from bench.service import Service

WEIGHT = 3
SLOTS = 20
#: Of a run, for each worker: however many there are, the queue grows while the flood is created.
RUN_SECONDS = 0.4
RUNS = 400
SHORT_RUNS = 120
#: Of the share, around the weight: of few runs, two starts at either end of what counts are 7 %.
TOLERANCE = 0.1
SHORT_TOLERANCE = 0.2
WORKERS = (1, 2)
SHORT_WORKERS = (1,)
#: A round of all three orgs.
ROUND = WEIGHT + 1 + 1
_STARTED = text(
    "SELECT org_id, created_at, started_at FROM runs WHERE started_at IS NOT NULL"
    " ORDER BY started_at"
)
_LEFT = text(
    "SELECT count(*) FROM runs WHERE state = 'queued' AND started_at IS NULL AND org_id = :org_id"
)


def measure(*, short: bool = False) -> Iterator[Figure]:
    """Measure one web process, and one worker or two."""
    for workers in SHORT_WORKERS if short else WORKERS:
        slots = {"ARKLOOP_WORKER_CONCURRENCY": str(SLOTS)}
        with Service(web=1, workers=workers, environ=slots) as service:
            tolerance = SHORT_TOLERANCE if short else TOLERANCE
            yield from _figures(service, SHORT_RUNS if short else RUNS, workers, tolerance)


def _figures(service: Service, runs: int, workers: int, tolerance: float) -> Iterator[Figure]:
    loop, connections = Loop(), service.connect()
    (heavy, light, single), targets = zip(*(_org(service, name) for name in "abc"), strict=True)
    with connections.transaction() as tx:
        org_settings.change(tx, heavy, {"weight": WEIGHT})
    request = _request(RUN_SECONDS * workers)
    call_all(loop, [*targets[:2]], [request] * (2 * runs))
    _wait(connections, heavy, runs * 2 // 3)
    call_all(loop, [targets[2]], [request])
    _wait(connections, heavy, 0)
    with connections.reading() as sql:
        started = sql.execute(_STARTED).all()
    alone = next(row for row in started if row.org_id == single)
    waited = [row for row in started if alone.created_at < row.started_at < alone.started_at]
    # Both had runs in the queue: from when the single run came until the heavier org had none.
    last = max(row.started_at for row in started if row.org_id == heavy)
    shared = [row.org_id for row in started if alone.created_at < row.started_at <= last]
    scale = ("workers", float(workers))
    yield Figure(
        name=f"starts of an org of weight {WEIGHT} for each of an org of weight 1",
        unit="×",
        numbers={"share": shared.count(heavy) / max(1, shared.count(light))},
        count=len(shared),
        at_least={"share": WEIGHT * (1 - tolerance)},
        at_most={"share": WEIGHT * (1 + tolerance)},
        scale=scale,
        is_promise=True,
    )
    yield Figure(
        name="starts of others before the single run of a third org",
        unit="starts",
        numbers={"starts": len(waited)},
        count=1,
        # Two rounds, and what each process had chosen before and was claiming.
        at_most={"starts": (2 * ROUND + SLOTS) * workers},
        scale=scale,
        note=f"waited {(alone.started_at - alone.created_at).total_seconds():.2f} s;"
        f" a round is {ROUND} starts in each worker process of {SLOTS} slots",
        is_promise=True,
    )


def _request(seconds: float) -> Request:
    steps: dict[str, Any] = {"say": "a b", "delay_ms": seconds * 500}
    return ("POST", "/v1/runs", {"message": script(steps)})


def _org(service: Service, name: str) -> tuple[UUID, Target]:
    owner, key = service.new_org(name)
    return owner.org_id, Target(service.urls[0], key)


def _wait(connections: Connections, org_id: UUID, most: int) -> None:
    """Wait until at most this number of runs of the org wait for a worker."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with connections.reading() as sql:
            if (sql.scalar(_LEFT, {"org_id": org_id}) or 0) <= most:
                return
        time.sleep(0.02)
    raise TimeoutError("the queue does not get shorter")
