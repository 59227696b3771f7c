"""The time until a run starts while Redis refuses connections, with and without a new worker."""

import json
import statistics
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from sqlalchemy import text

from arkloop.shared.storage.connections import Connections
from bench.conversations import lost, prepare, targets_of, wait_for_ends
from bench.figure import Figure
from bench.http_clients import Loop, call_all
from bench.service import Service

OUTAGE_SECONDS = 60.0
SHORT_OUTAGE_SECONDS = 6.0
PAUSE_SECONDS = 0.5
#: What docs/reliability.md promises without a broker.
TARGET_SECONDS = 3.0
#: A worker that is being replaced starts no run; Python needs about this long to start.
RESTART_SECONDS = 5.0
_WAITS = """
SELECT extract(epoch FROM started_at - created_at)::float8 FROM runs
WHERE id = ANY(CAST(:runs AS uuid[]))
"""


def measure(*, short: bool = False) -> Iterator[Figure]:
    """Post a run every half second to one web process and one worker while Redis is gone."""
    seconds = SHORT_OUTAGE_SECONDS if short else OUTAGE_SECONDS
    with Service(web=1, workers=1) as service:
        connections = service.connect()
        yield _figure("Redis refused", connections, _outage(service, seconds, restart=False))
        yield _figure(
            "Redis refused, the worker replaced meanwhile",
            connections,
            _outage(service, seconds, restart=True),
            most=TARGET_SECONDS + RESTART_SECONDS,
        )


def _outage(service: Service, seconds: float, *, restart: bool) -> list[str]:
    """Return the ids of the runs that were created during the outage."""
    loop, targets = Loop(), targets_of(service)
    threads = prepare(loop, targets, int(seconds / PAUSE_SECONDS), "hello")
    made: list[str] = []
    service.redis.stop()
    for number, thread in enumerate(threads):
        [(status, body, _)] = call_all(loop, targets, [("POST", f"/v1/threads/{thread}/runs", {})])
        assert status == 201, body
        made.append(json.loads(body)["run_id"])
        if restart and number == len(threads) // 3:
            service.end("worker")
            service.start("worker")
        time.sleep(PAUSE_SECONDS)
    service.redis.start()
    return made


def _figure(
    name: str, connections: Connections, runs: list[str], most: float = TARGET_SECONDS
) -> Figure:
    wait_for_ends(connections)
    values: dict[str, Any] = {"runs": [UUID(one) for one in runs]}
    with connections.reading() as sql:
        waits = list(sql.scalars(text(_WAITS), values))
    return Figure(
        name=f"{name}: from POST to the start of the run",
        unit="s",
        numbers={
            "p50": statistics.median(waits),
            "maximum": max(waits),
            "lost": lost(connections, runs),
        },
        count=len(waits),
        at_most={"maximum": most, "lost": 0},
    )
