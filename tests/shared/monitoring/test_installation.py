"""The installation as its operator sees it."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from arkloop.shared.accounts import suspensions
from arkloop.shared.ids import new_id
from arkloop.shared.monitoring import installation
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.runs import FIRST_WAITING
from tests.clients import Register, User
from tests.stored_runs import StoredRuns, ago

MakeRun = Callable[..., UUID]

GUIDE = Path(__file__).parents[3] / "docs" / "how-to" / "operations.md"


@pytest.fixture(autouse=True)
def nothing_else(connections: Connections) -> None:
    """A database in which no run is unended and no worker known."""
    with connections.transaction() as tx:
        tx.sql.exec_driver_sql("DELETE FROM workers")
        tx.sql.exec_driver_sql(
            "UPDATE runs SET state = 'cancelled', ended_at = now() WHERE ended_at IS NULL"
        )


def stuck(connections: Connections, **seconds: int) -> list[tuple[UUID, str]]:
    seconds = {"queued_seconds": 60, "silent_seconds": 600, **seconds}
    with connections.reading() as sql:
        found = installation.stuck_runs(sql, connections.settings, **seconds)
    return [(row.id, row.problem) for row in found]


def test_queues_are_ordered_by_the_longest_wait(
    connections: Connections, alice: User, register: Register, make_run: MakeRun
) -> None:
    """Each org has its counts by state; one without a run that has not ended is not there, unless
    it is suspended. Suspended orgs wait for no worker, and come last.
    """
    bob, idle, suspended, closed = register(), register(), register(), register()
    make_run(closed, closed.thread(), RunState.QUEUED, queued_at=ago(seconds=900))
    with connections.transaction() as tx:
        for org in (suspended, closed):
            suspensions.suspend(tx, org.org_id, "Unpaid bills")
    make_run(alice, alice.thread(), RunState.QUEUED, queued_at=ago(seconds=10))
    make_run(alice, alice.thread(), RunState.QUEUED, agent="shop")
    make_run(alice, alice.thread(), RunState.WAITING)
    make_run(bob, bob.thread(), RunState.QUEUED, queued_at=ago(seconds=90))
    make_run(bob, bob.thread(), RunState.EXECUTING)
    make_run(idle, idle.thread(), RunState.COMPLETED, ended_at=ago(seconds=1))

    ours = {alice.org_id, bob.org_id, idle.org_id, suspended.org_id, closed.org_id}
    with connections.reading() as sql:
        rows = [row for row in installation.queues(sql) if row.org_id in ours]

    counts = ("queued", "queued_for_agents", "executing", "waiting", "not_yet_due")
    assert [
        (bob.org_id, (1, 0, 1, 0, 0)),
        (alice.org_id, (1, 1, 0, 1, 0)),
        (closed.org_id, (1, 0, 0, 0, 0)),
        (suspended.org_id, (0, 0, 0, 0, 0)),
    ] == [(row.org_id, tuple(row._mapping[name] for name in counts)) for row in rows]


def test_a_suspended_org_is_found_behind_many_others(
    connections: Connections,
    register: Register,
    make_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The list is as long as before, and keeps its order."""
    monkeypatch.setattr(installation, "MOST", 4)
    orgs = [register() for _ in range(6)]
    for number, one in enumerate(orgs):
        make_run(one, one.thread(), RunState.QUEUED, queued_at=ago(seconds=90 - number))
    suspended = register()
    with connections.transaction() as tx:
        suspensions.suspend(tx, suspended.org_id, "Unpaid bills")

    with connections.reading() as sql:
        rows = installation.queues(sql)
    found = [row.org_id for row in rows]
    assert 4 == len(found)
    assert [one.org_id for one in orgs[:2]] == found[:2]
    assert suspended.org_id in found


def test_workers_are_alive_by_what_was_heard(stored: StoredRuns) -> None:
    """Heartbeats show one of the service, a lease shows an agent worker; each has its runs."""
    alive = stored.worker()
    stored.claim(stored.create(), alive)
    away = stored.worker(seen_at=ago(seconds=60))
    agent = stored.worker(seen_at=ago(seconds=60), org_id=stored.actor.org_id, hostname="shop")

    with stored.connections.reading() as sql:
        long_lease = replace(stored.connections.settings, lease_seconds=600)
        rows = installation.workers(sql, long_lease)

    assert {alive: (True, 1), agent: (True, 0), away: (False, 0)} == {
        row.id: (row.is_alive, row.runs) for row in rows
    }
    assert away == rows[-1].id


def test_leases_say_who_executes_what_and_until_when(stored: StoredRuns) -> None:
    """Newest first, page by page, with the last event; perhaps of one worker alone."""
    first, second = stored.claimed(), stored.claimed(seen_at=ago(seconds=60))
    settings = stored.connections.settings

    with stored.connections.reading() as sql:

        def leases(worker_id: UUID | None = None, **page: Any) -> list[Any]:
            args = {"limit": 10, "before": None, **page}
            return list(installation.leases(sql, settings, worker_id=worker_id, **args))

        rows = leases()
        rest = leases(limit=1, before=(rows[0].created_at, rows[0].id))
        own = leases(rows[0].owner)

    assert [(second.run_id, False), (first.run_id, True)] == [(r.id, r.is_held) for r in rows]
    assert [first.run_id] == [row.id for row in rest]
    assert [second.run_id] == [row.id for row in own]
    assert {("run.started", 1)} == {(row.last_event, row.last_seq) for row in rows}


def test_each_way_to_be_stuck_has_its_name(
    stored: StoredRuns, connections: Connections, alice: User, make_run: MakeRun
) -> None:
    """What moves on, or may still be dealt with by the sweep, is not stuck."""
    held = stored.worker()
    made = {
        "queued": make_run(alice, alice.thread(), RunState.QUEUED, queued_at=ago(seconds=61)),
        "worker_lost": stored.claimed(seen_at=ago(seconds=50)).run_id,
        "cancelling": stored.claimed(held).run_id,
        "overdue": make_run(
            alice, alice.thread(), RunState.WAITING, input_expires_at=ago(seconds=40)
        ),
    }
    stored.set(made["cancelling"], cancel_requested_at=ago(seconds=45))
    also_overdue = [
        make_run(
            alice,
            alice.thread(),
            RunState.SCHEDULED,
            position=FIRST_WAITING,
            not_before=ago(seconds=35),
        ),
        make_run(
            alice, alice.thread(), RunState.SUSPENDED, attempt=1, waiting_since=ago(seconds=31)
        ),
    ]
    make_run(alice, alice.thread(), RunState.QUEUED, queued_at=ago(seconds=30))
    make_run(alice, alice.thread(), RunState.WAITING, input_expires_at=ago(seconds=-60))
    stored.claimed(held)
    parent = make_run(
        alice, alice.thread(), RunState.SUSPENDED, attempt=1, waiting_since=ago(seconds=99)
    )
    make_run(alice, alice.thread(), RunState.EXECUTING, parent_run_id=parent, owner=held)

    expected = [(run_id, problem) for problem, run_id in made.items()]
    assert expected + [(run_id, "overdue") for run_id in also_overdue] == stuck(connections)


def test_a_run_that_writes_nothing_is_silent(stored: StoredRuns, connections: Connections) -> None:
    """The time of its last event counts, while its worker is alive."""
    worker_id = stored.worker()
    silent, busy = stored.claimed(worker_id).run_id, stored.claimed(worker_id).run_id
    for run_id in (silent, busy):
        stored.set(run_id, started_at=ago(seconds=900))
    with connections.transaction() as tx:
        tx.sql.exec_driver_sql(
            "UPDATE run_events SET payload = jsonb_set(payload::jsonb, '{created_at}',"
            " '\"2026-01-01T00:00:00.000Z\"')::text WHERE run_id = %s",
            (silent,),
        )

    assert [(silent, "silent")] == stuck(connections)
    assert [] == stuck(connections, silent_seconds=86_400)


def test_the_retention_is_counted(connections: Connections, alice: User, make_run: MakeRun) -> None:
    """Runs that have ended, those that are too old, and deleted ones whose events are left."""
    make_run(alice, alice.thread(), RunState.COMPLETED, ended_at=ago(days=91))
    make_run(alice, alice.thread(), RunState.COMPLETED, ended_at=ago(days=1))
    with connections.transaction() as tx:
        tx.sql.exec_driver_sql("INSERT INTO forgotten_events (run_id) VALUES (%s)", (new_id(),))
    with connections.reading() as sql:
        found = installation.retained(sql, 90)

    assert (1, 1) == (found.runs_too_old, found.deleted_runs_with_events)
    assert found.ended_runs > 1


def test_what_the_guide_watches_is_quiet_at_rest(
    connections: Connections, alice: User, register: Register, make_run: MakeRun, stored: StoredRuns
) -> None:
    """The queries of the guide count runs that wait for workers of the service, and those workers;
    agent workers, their runs and suspended orgs set off none.
    """
    suspended = register()
    make_run(suspended, suspended.thread(), RunState.QUEUED, queued_at=ago(seconds=90))
    with connections.transaction() as tx:
        suspensions.suspend(tx, suspended.org_id, "Unpaid bills")
    make_run(alice, alice.thread(), RunState.QUEUED, queued_at=ago(seconds=90), agent="shop")
    stored.worker(seen_at=ago(seconds=90), org_id=alice.org_id, hostname="shop")
    watched = GUIDE.read_text().partition("\n## What to watch\n")[2].partition("\n## ")[0]
    queries = re.findall(r"^\| `(SELECT .+?)` \| Postgres \|", watched, re.MULTILINE)
    [queued] = (query for query in queries if "count(*) FROM runs WHERE state = 'queued'" in query)
    [silent] = (query for query in queries if "FROM workers" in query)

    def rows(query: str) -> list[tuple[Any, ...]]:
        with connections.reading() as sql:
            return [tuple(row) for row in sql.exec_driver_sql(query.replace("%", "%%"))]

    for query in queries:
        rows(query)  # fits the schema
    assert ([(0,)], []) == (rows(queued), rows(silent))

    make_run(alice, alice.thread(), RunState.QUEUED, queued_at=ago(seconds=90))
    stored.worker(seen_at=ago(seconds=90))

    assert [(1,)] == rows(queued)
    assert [("test", 1)] == [row[:2] for row in rows(silent)]
