"""Threads with something to answer, the runs in them, and whether all of those ended well."""

import json
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text

from arkloop.shared.storage.connections import Connections
from bench.http_clients import Loop, Target, call_all
from bench.service import Service

_LOOK_SECONDS = 0.05
_LOST = """
SELECT count(*)
FROM unnest(CAST(:runs AS uuid[])) AS wanted (id)
LEFT JOIN runs ON runs.id = wanted.id
LEFT JOIN LATERAL (
    SELECT count(*) AS events, min(seq) AS first, max(seq) AS last,
        count(*) FILTER (WHERE type IN ('run.completed', 'run.failed', 'run.cancelled')) AS ends,
        max(seq) FILTER (WHERE type = 'run.completed') AS completed_at
    FROM run_events WHERE run_id = wanted.id
) AS log ON true
WHERE runs.state IS DISTINCT FROM 'completed' OR log.first IS DISTINCT FROM 1
    OR log.last <> log.events OR log.ends <> 1 OR log.completed_at IS DISTINCT FROM log.last
"""


def targets_of(service: Service, api_key: str | None = None) -> list[Target]:
    """Return one target for each web process; `api_key` is that of another org than the service's
    own.
    """
    return [Target(url, api_key or service.api_key) for url in service.urls]


def script(*steps: dict[str, Any]) -> str:
    """Build a message for which the scripted model plays these steps."""
    return json.dumps({"script": steps})


#: No more than what a process with few connections to Postgres serves at once.
PREPARING = 8


def prepare(loop: Loop, targets: list[Target], count: int, content: str) -> list[str]:
    """Create `count` threads, each with one message of its user, and return their ids."""
    made = call_all(loop, targets, [("POST", "/v1/threads", {})] * count, connections=PREPARING)
    threads = [json.loads(body)["id"] for _, body, _ in made]
    said = [("POST", f"/v1/threads/{one}/messages", {"content": content}) for one in threads]
    answers = call_all(loop, targets, said, connections=PREPARING)
    statuses = {status for status, _, _ in answers}
    assert {201} == statuses, statuses
    return threads


def wait_for_ends(connections: Connections, seconds: float = 120.0) -> float:
    """Wait until no run is left that has not ended, and return when, by `time.perf_counter`.
    Raises: TimeoutError.
    """
    deadline = time.perf_counter() + seconds
    while True:
        with connections.reading() as sql:
            left = sql.scalar(text("SELECT count(*) FROM runs WHERE ended_at IS NULL"))
        now = time.perf_counter()
        if not left:
            return now
        if now > deadline:
            raise TimeoutError(f"{left} runs have not ended within {seconds:g} s")
        time.sleep(_LOOK_SECONDS)


def lost(connections: Connections, run_ids: Sequence[str]) -> int:
    """Count those that are not completed once, by their last event, without a hole before it."""
    with connections.reading() as sql:
        values = {"runs": [UUID(run_id) for run_id in run_ids]}
        return int(sql.scalar(text(_LOST), values) or 0)
