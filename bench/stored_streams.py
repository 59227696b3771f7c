"""Runs that a benchmark of streams needs, written straight into Postgres."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text

from arkloop.shared.actors import Actor
from arkloop.shared.storage.connections import Connections

#: Events of a run that waits: run.started, run.waiting_for_input.
EVENTS_OF_WAITING = 2

_THREADS = """
INSERT INTO threads (id, org_id, created_by_user_id)
SELECT uuidv7(), :org_id, :user_id FROM generate_series(1, :count)
RETURNING id
"""
_RUNS = """
INSERT INTO runs (id, org_id, thread_id, created_by_user_id, trace_id, persona_id, route_id, model,
    position, state, attempt, queued_at, created_at, started_at, waiting_since, pending_input,
    input_expires_at, ended_at)
SELECT uuidv7(), :org_id, thread_id, :user_id, repeat('0', 32), 'assistant@1', 'scripted',
    'scripted-1', 1, :state, 1, now(), now(), now(),
    CASE WHEN :state = 'waiting' THEN now() END,
    CASE WHEN :state = 'waiting' THEN CAST(
        '{"request_id": "01a20e81-0000-7000-8000-000000000000", "kind": "question", "prompt": "?"}'
        AS jsonb) END,
    CASE WHEN :state = 'waiting' THEN now() + interval '1 day' END,
    CASE WHEN :state = 'completed' THEN now() END
FROM unnest(CAST(:threads AS uuid[])) AS thread_id
RETURNING id
"""
_EVENTS = """
INSERT INTO run_events (run_id, seq, type, payload)
SELECT run_id, seq, kind, '{"seq":' || seq || ',"type":"' || kind || '","data":{"content":"'
    || repeat('x', :characters) || '"},"created_at":"2026-01-01T00:00:00.000Z"}'
FROM unnest(CAST(:runs AS uuid[])) AS run_id, generate_series(1, :count) AS seq,
    LATERAL (SELECT CASE WHEN seq = 1 THEN 'run.started' WHEN seq < :count THEN 'message.delta'
        ELSE :last END) AS of_type (kind)
"""


def waiting(connections: Connections, owner: Actor, count: int) -> list[UUID]:
    """Store `count` runs that wait for a person; Redis has nothing of them."""
    runs = _runs(connections, owner, count, "waiting")
    _write(connections, runs, EVENTS_OF_WAITING, 20, "run.waiting_for_input")
    return runs


def finished(connections: Connections, owner: Actor, events: int, characters: int) -> UUID:
    """Store an ended run of `events` events, whose deltas have `characters` characters each."""
    [run] = _runs(connections, owner, 1, "completed")
    _write(connections, [run], events, characters, "run.completed")
    return run


def _runs(connections: Connections, owner: Actor, count: int, state: str) -> list[UUID]:
    of_owner = {"org_id": owner.org_id, "user_id": owner.user_id}
    with connections.transaction() as tx:
        threads = list(tx.sql.scalars(text(_THREADS), {**of_owner, "count": count}))
        values = {**of_owner, "threads": threads, "state": state}
        return list(tx.sql.scalars(text(_RUNS), values))


def _write(
    connections: Connections, runs: Sequence[UUID], count: int, characters: int, last: str
) -> None:
    values = {"runs": list(runs), "count": count, "characters": characters, "last": last}
    with connections.transaction() as tx:
        tx.sql.execute(text(_EVENTS), values)
