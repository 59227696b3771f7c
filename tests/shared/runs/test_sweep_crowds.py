"""Many workers and many sweeps: silences of all, sweeps at once, and how often one is made."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from uuid import UUID

import pytest
from sqlalchemy import func, insert, make_url, select, text

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.shared import ids, spans
from arkloop.shared.claim import Claim
from arkloop.shared.runs import queries, recovery, sweep
from arkloop.shared.runs.states import RunState
from arkloop.shared.spans import Span
from arkloop.shared.storage.connections import Connections, connect
from arkloop.shared.storage.epoch import IDENTITY
from arkloop.shared.storage.tables.billing import reservations
from arkloop.shared.storage.tables.runs import runs, workers
from arkloop.shared.storage.tables.threads import threads
from chaos.system.fault_proxy import FaultProxy
from tests.shared.runs.swept_runs import (
    SILENT,
    connections,
    lost,
    nothing_left_over,
    postgres_is_up_for_longer_than_a_lease,
    with_lease,
    witness,
)
from tests.stored_runs import StoredRuns, ago
from tests.waiting import eventually, in_parallel

pytestmark = pytest.mark.processes

__all__ = [
    "connections",
    "nothing_left_over",
    "postgres_is_up_for_longer_than_a_lease",
    "witness",
]  # fixtures


@pytest.fixture
def recorded() -> Iterator[list[Span]]:
    """The spans that are recorded meanwhile."""
    seen: list[Span] = []
    spans.record_to(seen.append)
    yield seen
    spans.record_to(None)


@pytest.mark.usefixtures("witness")
def test_one_process_sweeps_at_a_time(stored: StoredRuns) -> None:
    """The others do nothing and wait for nothing."""
    claim = lost(stored)
    with stored.connections.transaction() as tx:
        tx.sql.execute(select(func.pg_advisory_xact_lock(sweep.LOCK_KEY)))

        sweep.sweep(stored.connections)

        assert "executing" == stored.state(claim.run_id)


@pytest.mark.usefixtures("witness")
def test_many_sweeps_at_once_recover_each_run_once(stored: StoredRuns) -> None:
    """Every run is queued again once, and its workers are notified once."""
    lost_runs = [lost(stored).run_id for _ in range(20)]

    in_parallel(8, lambda _: sweep.sweep(stored.connections))

    assert {"queued"} == {stored.state(run_id) for run_id in lost_runs}
    assert {1} == {stored.row(run_id)["crashes"] for run_id in lost_runs}
    assert sorted(lost_runs) == sorted(stored.sent)


@pytest.mark.usefixtures("witness")
def test_a_run_that_cannot_be_settled_does_not_stop_the_others(stored: StoredRuns) -> None:
    """Each run of a sweep is settled by itself."""
    broken, sound = lost(stored), lost(stored)
    with stored.connections.transaction() as tx:
        # Its terminal event has no place: the number is beyond what the column holds.
        tx.sql.execute(
            text("INSERT INTO run_events VALUES (:id, 9223372036854775807, 'message.delta', '{}')"),
            {"id": broken.run_id},
        )
        for claim in (broken, sound):
            tx.sql.execute(text("UPDATE runs SET crashes = 2 WHERE id = :id"), {"id": claim.run_id})

    sweep.sweep(stored.connections)

    assert (RunState.EXECUTING, RunState.FAILED) == (
        stored.state(broken.run_id),
        stored.state(sound.run_id),
    )


@pytest.mark.usefixtures("witness")
def test_a_locked_thread_does_not_keep_runs_of_others_from_their_end(
    stored: StoredRuns, caplog: pytest.LogCaptureFixture, recorded: list[Span]
) -> None:
    """Runs whose ends need a thread that somebody holds are left to the next sweep."""
    lost_runs = [lost(stored, crashes=2).run_id for _ in range(2)]
    parked = [_expired(stored, since=seconds) for seconds in (60, 1)]
    held, others = (lost_runs[0], parked[0]), (lost_runs[1], parked[1])
    for run_id in (*held, *others):
        stored.set(run_id, has_followers=True)
    of_held = select(runs.c.thread_id).where(runs.c.id.in_(held))
    with stored.connections.transaction() as tx:
        tx.sql.execute(select(threads.c.id).where(threads.c.id.in_(of_held)).with_for_update())
        recorded.clear()

        sweep.sweep(stored.connections)

        assert ["executing", "waiting"] == [stored.state(run_id) for run_id in held]
        assert ["failed", "failed"] == [stored.state(run_id) for run_id in others]
    lines = [one.getMessage() for one in caplog.records]
    warnings = [line for line in lines if "left to the" in line]
    assert all(any(str(run_id) in line for line in warnings) for run_id in held)
    # Once, when they are: somebody may hold the thread for hours.
    ended = [line for line in lines if "recovering run" in line]
    assert [str(lost_runs[1])] == [run_id for line in ended for run_id in line.split()[2:3]]
    assert {str(lost_runs[1])} == {span.attributes["arkloop.run.id"] for span in recorded}

    sweep.sweep(stored.connections)
    assert ["failed", "failed"] == [stored.state(run_id) for run_id in held]


@pytest.mark.usefixtures("witness")
@pytest.mark.parametrize("step", [recovery, sweep])
def test_a_crowd_of_locked_threads_does_not_keep_a_run_from_its_end(
    stored: StoredRuns,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: ModuleType,
) -> None:
    """Each batch waits once for a lock, and the next one passes over the runs that were locked."""
    monkeypatch.setattr(step, "BATCH", 16)
    monkeypatch.setattr(sweep, "PASS_OVER_SECONDS", 600)
    if step is sweep:
        *held, free = [_expired(stored, since=60 - n) for n in range(33)]
    else:
        *held, free = [lost(stored, crashes=2).run_id for _ in range(33)]
    for run_id in held:
        stored.set(run_id, has_followers=True)
    of_held = select(runs.c.thread_id).where(runs.c.id.in_(held))
    with stored.connections.transaction() as tx:
        tx.sql.execute(select(threads.c.id).where(threads.c.id.in_(of_held)).with_for_update())
        began = time.monotonic()

        sweep.sweep(stored.connections)

        assert 0.1 * len(held) > time.monotonic() - began
        assert "failed" == stored.state(free)
    # One line, not one for each run.
    assert 1 == sum("32 runs are left to the next sweep" in line for line in caplog.messages)


@pytest.mark.usefixtures("witness")
def test_a_locked_reservation_does_not_keep_runs_of_others_from_their_end(
    stored: StoredRuns,
) -> None:
    """A run whose money somebody holds is left to the next sweep, without the rest of its batch."""
    lost_runs = [lost(stored, crashes=2).run_id for _ in range(2)]
    parked = [_expired(stored, since=seconds) for seconds in (60, 1)]
    held, others = (lost_runs[0], parked[0]), (lost_runs[1], parked[1])
    month = func.date_trunc("month", func.now())
    reserved = insert(reservations).values(scopes=["org"], month=month, cost_usd=0, held_usd=0)
    with stored.connections.transaction() as tx:
        for run_id in held:
            org_id = stored.row(run_id)["org_id"]
            tx.sql.execute(reserved.values(run_id=run_id, org_id=org_id))
    of_held = select(reservations.c.run_id).where(reservations.c.run_id.in_(held))
    with stored.connections.transaction() as tx:
        tx.sql.execute(of_held.with_for_update())

        sweep.sweep(stored.connections)

        assert ["executing", "waiting"] == [stored.state(run_id) for run_id in held]
        assert ["failed", "failed"] == [stored.state(run_id) for run_id in others]

    sweep.sweep(stored.connections)
    assert ["failed", "failed"] == [stored.state(run_id) for run_id in held]


def test_a_locked_run_does_not_keep_the_sweep_from_the_others(stored: StoredRuns) -> None:
    """Runs below the parent of a locked one are left to the next sweep, and no others."""
    locked, orphan = (_orphan(stored) for _ in range(2))
    parked = _expired(stored, since=60)
    with stored.connections.transaction() as tx:
        tx.sql.execute(select(runs.c.id).where(runs.c.id == locked).with_for_update())

        sweep.sweep(stored.connections)

        assert ["queued", "cancelled", "failed"] == [
            stored.state(run_id) for run_id in (locked, orphan, parked)
        ]

    sweep.sweep(stored.connections)
    assert "cancelled" == stored.state(locked)


def _orphan(stored: StoredRuns) -> UUID:
    """Return a run below one that has ended."""
    parent = stored.held(stored.create())
    stored.finish(parent)
    return stored.create(parent_run_id=parent.run_id)


def _expired(stored: StoredRuns, *, since: float) -> UUID:
    """Return a run whose wait for an answer has been over for these seconds."""
    claim = stored.claimed()
    assert stored.park(claim, ids.new_id(), expires_in=-since)
    return claim.run_id


@pytest.mark.usefixtures("witness")
def test_a_restart_of_postgres_is_no_crash_of_its_workers(stored: StoredRuns) -> None:
    """A worker last seen before Postgres started could not renew, and has not crashed."""
    before_start = text("(SELECT pg_postmaster_start_time() - interval '1 minute')")
    claim = stored.claimed(seen_at=before_start)

    sweep.sweep(stored.connections)

    row = stored.row(claim.run_id)
    assert (RunState.QUEUED, 0) == (row["state"], row["crashes"])


def test_a_silence_of_all_workers_loses_no_run(stored: StoredRuns) -> None:
    """Postgres was frozen, in recovery or read-only: each gets a lease to come back."""
    owner, other = stored.worker(), stored.worker()
    claim = stored.claimed(owner)
    # Since Postgres was started, which is 15 seconds at least.
    silent, patient = ago(seconds=14.5), with_lease(stored, lease=14, heartbeat=0.2)
    for worker_id in (owner, other):
        stored.set_worker(worker_id, started_at=ago(seconds=60), seen_at=silent)
    sweep.sweep(patient)
    assert "executing" == stored.state(claim.run_id), "nobody is heard"

    stored.set_worker(other, seen_at=ago(seconds=-60), back_at=func.now())
    sweep.sweep(patient)
    assert "executing" == stored.state(claim.run_id), "the other one is back just now"

    stored.set_worker(other, back_at=silent)
    sweep.sweep(patient)
    assert ("queued", 1) == (stored.state(claim.run_id), stored.row(claim.run_id)["crashes"])


def test_a_worker_that_replaces_all_others_has_its_lost_runs_at_once(stored: StoredRuns) -> None:
    """A supervisor has started it: nobody waits for the one that died."""
    owner = stored.worker(started_at=ago(seconds=60))
    claim = stored.claimed(owner, seen_at=ago(seconds=1.5))
    stored.worker()

    sweep.sweep(stored.connections)

    assert ("queued", 1) == (stored.state(claim.run_id), stored.row(claim.run_id)["crashes"])


@pytest.mark.usefixtures("witness")
def test_one_silence_loses_a_run_once(stored: StoredRuns) -> None:
    """A worker that was taken for lost claims nothing before it has renewed its lease."""
    paused = stored.worker()
    claim = stored.claimed(paused, seen_at=ago(seconds=1.5))
    sweep.sweep(stored.connections)
    assert "queued" == stored.state(claim.run_id)

    assert stored.claim(claim.run_id, paused) is None
    sweep.sweep(stored.connections)
    assert ("queued", 1) == (stored.state(claim.run_id), stored.row(claim.run_id)["crashes"])

    stored.set_worker(paused, seen_at=ago(seconds=-60))
    assert stored.claim(claim.run_id, paused) is not None


def test_one_process_sweeps_in_each_period(connections: Connections) -> None:
    """All ask at once; a clock that was set back meanwhile does not stop them."""
    slow = replace(connections, settings=replace(connections.settings, sweep_seconds=60))
    _swept(connections, "now() - interval '46 seconds'")

    taken = in_parallel(8, lambda _: sweep.take_turn(slow))

    assert 1 == taken.count(True)
    assert not sweep.take_turn(slow)
    _swept(connections, "now() + interval '1 hour'")
    assert sweep.take_turn(slow)


@pytest.mark.parametrize("whose", ["of the dead", "of the living"])
def test_a_clock_that_was_set_back_hides_no_lost_worker(stored: StoredRuns, whose: str) -> None:
    """Its runs are recovered, whether its own time or one of the others is in the future."""
    in_an_hour = ago(seconds=-3600)
    dead, living = (stored.worker(started_at=ago(seconds=60)) for _ in range(2))
    claim = stored.claimed(dead)
    if whose == "of the dead":
        stored.set_worker(dead, seen_at=in_an_hour)
    else:
        stored.set_worker(living, back_at=in_an_hour)
    short = with_lease(stored, lease=1.5, heartbeat=0.5)
    _swept(stored.connections, "NULL")

    assert sweep.take_turn(short)

    def is_recovered() -> bool:
        stored.set_worker(living, seen_at=func.now())
        sweep.sweep(short)
        return stored.state(claim.run_id) == "queued"

    eventually(is_recovered)
    if whose == "of the dead":
        query = select(workers.c.back_at).where(workers.c.id == dead)
        with stored.connections.reading() as sql:
            assert sql.scalar(query) is None


def test_a_clock_that_was_set_back_delays_no_queued_run(stored: StoredRuns) -> None:
    """A queued run whose message is lost is found by the poll within seconds.

    One that is queued while the sweep begins is not touched: a claim passes over locked runs.
    """
    ahead, other, new = (stored.create() for _ in range(3))
    for run_id, seconds in ((ahead, -3600), (other, 5), (new, -0.9)):
        stored.set(run_id, queued_at=ago(seconds=seconds))
    before = [stored.row(run_id)["queued_at"] for run_id in (other, new)]
    _swept(stored.connections, "NULL")

    assert sweep.take_turn(stored.connections)

    def found() -> list[UUID]:
        with stored.connections.reading() as sql:
            return queries.unclaimed(sql, older_than=1, limit=10, suspects=False)

    eventually(lambda: {other, ahead, new} == {*found()}, seconds=10)
    assert before == [stored.row(run_id)["queued_at"] for run_id in (other, new)]


def test_a_turn_leaves_the_times_of_workers_as_they_are(stored: StoredRuns) -> None:
    """Only times in the future are corrected."""
    silent = stored.worker(seen_at=SILENT)
    back = stored.worker(seen_at=func.now(), back_at=SILENT)
    query = select(workers.c.seen_at, workers.c.back_at).where(workers.c.id.in_([silent, back]))
    with stored.connections.reading() as sql:
        before = set(sql.execute(query))
    _swept(stored.connections, "NULL")

    assert sweep.take_turn(stored.connections)

    with stored.connections.reading() as sql:
        assert before == set(sql.execute(query))


def test_a_sweep_leaves_the_names_in_redis_as_they_are(connections: Connections) -> None:
    """Processes that connect before and after it find each other's messages and events."""
    with connections.reading() as sql:
        before = sql.execute(text(IDENTITY)).one()[:2]

    _swept(connections, "NULL")
    assert sweep.take_turn(connections)

    with connections.reading() as sql:
        assert before == sql.execute(text(IDENTITY)).one()[:2]


def _swept(connections: Connections, at: str) -> None:
    with connections.transaction() as tx:
        tx.sql.execute(text(f"UPDATE sweep_turn SET swept_at = {at}"))


def test_a_sweep_over_a_half_open_connection_goes_on(
    stored: StoredRuns, witness: UUID, postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep continues within the time of its limits, though neither end notices by TCP."""

    def is_recovered(claim: Claim) -> bool:
        stored.set_worker(witness, seen_at=func.now())
        return stored.state(claim.run_id) == "queued"

    assert sweep.MAINTENANCE_TIMEOUTS.answer <= 12
    shorter = replace(sweep.MAINTENANCE_TIMEOUTS, statement=0.8, answer=1.0)
    monkeypatch.setattr(sweep, "MAINTENANCE_TIMEOUTS", shorter)
    settings = stored.connections.settings
    with FaultProxy(postgres.sockets / ".s.PGSQL.5432") as proxy:
        database = make_url(settings.database_url).database
        url = f"postgresql+psycopg://postgres@127.0.0.1:{proxy.port}/{database}"
        quick = replace(settings, database_url=url, sweep_seconds=0.1)
        through = connect(quick, application="tests")
        loop = sweep.start(through)
        first = lost(stored)
        eventually(lambda: is_recovered(first))

        proxy.abandon()
        second = lost(stored)
        eventually(lambda: is_recovered(second))

        loop.stop()
        eventually(lambda: not any(one.name == "sweep" for one in threading.enumerate()))
        through.close()
