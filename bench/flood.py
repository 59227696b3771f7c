"""Single runs of an org while another one has 10,000 runs in the queue, of many keys and users.

The runs of the flood are written into the database, as requests would leave them, each in a thread
of its own. What counts is how many of them start between the creation and the start of one run.
"""

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import NullPool, create_engine, text

from arkloop.shared.accounts import accounts, api_keys
from arkloop.shared.actors import Actor
from arkloop.shared.storage.connections import Connections
from bench.conversations import script
from bench.figure import Figure, percentile
from bench.http_clients import Loop, Target, call_all
from bench.service import Service

RUNS, SHORT_RUNS = 10_000, 1_000
SINGLES, SHORT_SINGLES = 20, 3
KEYS, USERS, END_USERS = 8, 4, 50
SLOTS = 20
#: Of a run: what the worker executes while the single runs come is a small part of the flood.
RUN_SECONDS = 0.4
#: Both orgs, of weight 1.
ROUND = 2
PATIENCE_SECONDS = 120.0
_MESSAGE = script({"say": "a b", "delay_ms": RUN_SECONDS * 500})
_FLOOD = text("""
WITH users AS (
    SELECT array_agg(user_id) AS ids FROM memberships WHERE org_id = :org_id
), keys AS (
    SELECT array_agg(id) AS ids FROM api_keys WHERE org_id = :org_id
), made AS (
    INSERT INTO threads (id, org_id, created_by_user_id, is_private, next_position)
    SELECT gen_random_uuid(), :org_id, users.ids[1 + n % cardinality(users.ids)], false, 3
    FROM generate_series(1, :count) AS n, users RETURNING id, created_by_user_id
), said AS (
    INSERT INTO messages (id, org_id, thread_id, created_by_user_id, position, role, content)
    SELECT gen_random_uuid(), :org_id, id, created_by_user_id, 1, 'user', :message FROM made
)
INSERT INTO runs SELECT (jsonb_populate_record(r, jsonb_build_object(
    'id', gen_random_uuid(), 'thread_id', n.id, 'created_by_user_id', n.created_by_user_id,
    'api_key_id', keys.ids[1 + n.number % cardinality(keys.ids)],
    'end_user_id', 'u' || n.number % :end_users, 'position', 2, 'state', 'queued',
    'not_before', null, 'queued_at', now(), 'created_at', now()
))).*
FROM runs r, keys, (SELECT *, row_number() OVER () AS number FROM made) AS n WHERE r.id = :run_id
""")
_STARTED = text("""
SELECT count(f.id), extract(epoch FROM b.started_at - b.created_at)::float8
FROM runs b LEFT JOIN runs f ON f.org_id = :org_id
    AND f.started_at > b.created_at AND f.started_at < b.started_at
WHERE b.id = :run_id AND b.started_at IS NOT NULL GROUP BY b.id
""")
_LEFT = text("SELECT count(*) FROM runs WHERE org_id = :org_id AND state = 'queued'")


def measure(*, short: bool = False) -> Iterator[Figure]:
    """Measure one web process and one worker; the flood is in the queue all the time."""
    runs, singles = (SHORT_RUNS, SHORT_SINGLES) if short else (RUNS, SINGLES)
    slots = {"ARKLOOP_WORKER_CONCURRENCY": str(SLOTS)}
    with Service(web=1, workers=1, environ=slots) as service:
        loop, connections = Loop(), service.connect()
        owner, key = service.new_org("flood")
        _, quiet = service.new_org("quiet")
        target = Target(service.urls[0], quiet)
        _flood(connections, loop, owner, Target(service.urls[0], key), runs)
        before, seconds = zip(
            *(_single(connections, loop, owner.org_id, target) for _ in range(singles)), strict=True
        )
        with connections.reading() as sql:
            left = int(sql.scalar(_LEFT, {"org_id": owner.org_id}) or 0)
    assert left, "the flood was over"
    yield Figure(
        name=f"starts of a flood of {runs:,} runs before a single run of another org",
        unit="starts",
        numbers={"p50": percentile(before, 0.5), "maximum": max(before)},
        count=singles,
        # Two rounds, and what the process had chosen before and was claiming.
        at_most={"maximum": 2 * ROUND + SLOTS},
        note=f"by {KEYS} keys, {USERS} users and {END_USERS} end users; waited"
        f" {percentile(seconds, 0.5):.2f} s, {max(seconds):.2f} s at most; {left:,} left",
        is_promise=True,
    )


def _flood(connections: Connections, loop: Loop, owner: Actor, target: Target, count: int) -> None:
    """Put that many runs of many keys, users and end users into the queue."""
    with connections.transaction() as tx:
        for number in range(1, USERS):
            accounts.create_user(
                tx,
                org_id=owner.org_id,
                role="member",
                login=f"flood-{number}",
                email=f"flood-{number}@example.com",
                password_hash="-",  # nobody can log in
            )
        for number in range(1, KEYS):
            api_keys.create(tx, owner, name=f"flood {number}")
    body = {"message": _MESSAGE, "not_before": _far()}
    made = _create(loop, target, body)
    values: dict[str, Any] = {"org_id": owner.org_id, "run_id": UUID(made), "count": count}
    # Those of the service give up after seconds.
    patient = create_engine(connections.settings.database_url, poolclass=NullPool)
    with patient.begin() as sql:
        sql.execute(_FLOOD, {**values, "message": _MESSAGE, "end_users": END_USERS})
    _wait(lambda: _started(connections, owner.org_id) >= SLOTS, "the flood begins")


def _single(connections: Connections, loop: Loop, flood: UUID, target: Target) -> tuple[int, float]:
    """Create a run; return the starts of the flood before its own, and the seconds until that."""
    values = {"org_id": flood, "run_id": UUID(_create(loop, target, {"message": _MESSAGE}))}
    found: list[Any] = []

    def has_started() -> bool:
        with connections.reading() as sql:
            found[:] = sql.execute(_STARTED, values).all()
        return bool(found)

    _wait(has_started, "the single run starts")
    time.sleep(RUN_SECONDS)
    return int(found[0][0]), float(found[0][1])


def _create(loop: Loop, target: Target, body: dict[str, Any]) -> str:
    [(status, answer, _)] = call_all(loop, [target], [("POST", "/v1/runs", body)])
    assert status == 201, answer
    return str(json.loads(answer)["run_id"])


def _started(connections: Connections, org_id: UUID) -> int:
    query = text("SELECT count(*) FROM runs WHERE org_id = :org_id AND started_at IS NOT NULL")
    with connections.reading() as sql:
        return int(sql.scalar(query, {"org_id": org_id}) or 0)


def _wait(check: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {PATIENCE_SECONDS:g} s")
        time.sleep(0.02)


def _far() -> str:
    return f"{datetime.now(UTC) + timedelta(days=30):%Y-%m-%dT%H:%M:%SZ}"
