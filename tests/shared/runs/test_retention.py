"""The deletion of what is too old: runs, their events bit by bit, dead workers."""

from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import func, select, text, update

from arkloop.shared.claim import Claim
from arkloop.shared.config import MAX_RETENTION_DAYS
from arkloop.shared.errors import RunNotFound
from arkloop.shared.events import event_log
from arkloop.shared.events.types import MessageDelta
from arkloop.shared.ids import new_id
from arkloop.shared.runs import queries, retention, sweep, tidying
from arkloop.shared.storage import idempotency
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.idempotency import Scope, StoredAnswer
from arkloop.shared.storage.outage import Outage
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import forgotten_events, runs, workers
from arkloop.shared.storage.tables.storage import idempotency_keys
from tests.clients import User
from tests.stored_runs import StoredRuns, ago
from tests.waiting import eventually, in_parallel


@pytest.fixture(autouse=True)
def small_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers have left at once; a bit is four events."""
    monkeypatch.setattr(retention, "READERS_LEAVE_SECONDS", 0)
    collect = retention._COLLECT_EVENTS.replace("LIMIT 2000", "LIMIT 4")
    monkeypatch.setattr(retention, "_COLLECT_EVENTS", collect)


@pytest.fixture(autouse=True)
def nothing_left_over(connections: Connections) -> Iterator[None]:
    """The retention looks at everybody's runs."""
    yield
    with connections.transaction() as tx:
        tx.sql.execute(
            text("TRUNCATE runs, run_events, forgotten_events, idempotency_keys CASCADE")
        )


def old(stored: StoredRuns, *, events: int = 0) -> Claim:
    """Store a run that ended a day too long ago, with `events` besides its first and last."""
    claim = stored.claimed()
    if events:
        stored.write(claim, *(MessageDelta(f"{number}") for number in range(events)))
    stored.finish(claim)
    stored.set(claim.run_id, ended_at=ago(days=91))
    return claim


def seqs(connections: Connections, run_id: UUID) -> list[int]:
    with connections.reading() as sql:
        query = select(run_events.c.seq).where(run_events.c.run_id == run_id)
        return list(sql.scalars(query.order_by(run_events.c.seq)))


def forgotten(connections: Connections) -> set[UUID]:
    with connections.reading() as sql:
        return set(sql.scalars(select(forgotten_events.c.run_id)))


def bit(connections: Connections) -> bool:
    """Collect events in one transaction."""
    with connections.transaction() as tx:
        return retention._collect_events(tx)


def test_old_runs_are_forgotten(stored: StoredRuns) -> None:
    """After the retention, with their events; what they said stays in the thread."""
    gone, young = old(stored), stored.claimed()
    message_id = new_id()
    said = stored.claimed()
    stored.finish(said, message=(message_id, "said long ago"))
    stored.set(said.run_id, ended_at=ago(days=91))
    stored.finish(young)
    stored.set(young.run_id, ended_at=ago(days=89))
    active = stored.create(created_at=ago(days=400))

    eventually(lambda: not tidying.tidy(stored.connections))

    assert [] == seqs(stored.connections, gone.run_id) == seqs(stored.connections, said.run_id)
    assert set() == forgotten(stored.connections)
    with stored.connections.reading() as sql:
        left = text("SELECT content, run_id FROM messages WHERE id = :id")
        assert [("said long ago", None)] == [
            tuple(row) for row in sql.execute(left, {"id": message_id})
        ]
    assert ["completed", "queued"] == [stored.state(young.run_id), stored.state(active)]


def test_a_long_run_is_unreachable_at_once_and_goes_bit_by_bit(stored: StoredRuns) -> None:
    """A reader of a deleted run meets an early end, never a hole."""
    run_id = old(stored, events=9).run_id
    with stored.connections.transaction() as tx:
        retention._forget_runs(tx)

    with stored.connections.reading() as sql, pytest.raises(RunNotFound):
        queries.get(sql, stored.actor, run_id)
    left = [seqs(stored.connections, run_id)]
    while bit(stored.connections):
        left.append(seqs(stored.connections, run_id))

    assert [list(range(1, n + 1)) for n in (11, 7, 3, 0)] == left
    assert set() == forgotten(stored.connections)


def test_many_small_runs_share_a_bit(stored: StoredRuns) -> None:
    """The runs that were forgotten first go first; a run without events goes with them."""
    without = stored.create(ended_at=ago(days=92), state="cancelled")
    run_ids = [old(stored).run_id for _ in range(3)]
    with stored.connections.transaction() as tx:
        retention._forget_runs(tx)
    assert {without, *run_ids} == forgotten(stored.connections)

    bit(stored.connections)

    assert [0, 0, 2] == sorted(len(seqs(stored.connections, run_id)) for run_id in run_ids)
    assert 1 == len(forgotten(stored.connections))
    retention.forget(stored.connections)
    assert set() == forgotten(stored.connections)
    assert [[]] * 3 == [seqs(stored.connections, run_id) for run_id in run_ids]


def test_events_stay_until_readers_have_left(
    stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader who began before the deletion can read on."""
    run_id = old(stored).run_id
    monkeypatch.setattr(retention, "READERS_LEAVE_SECONDS", 60)

    retention.forget(stored.connections)

    assert {run_id} == forgotten(stored.connections)
    with stored.connections.reading() as sql:
        events = event_log.read_table(sql, run_id, 0)
    assert ["run.started", "run.completed"] == [event.type for event in events]


def test_whatever_deletes_a_run_leaves_its_events_to_be_collected(stored: StoredRuns) -> None:
    """A process of an older version, or an operator who deletes an org."""
    by_hand, with_org = old(stored).run_id, old(stored).run_id
    with stored.connections.transaction() as tx:
        tx.sql.execute(text("DELETE FROM runs WHERE id = :id"), {"id": by_hand})
        tx.sql.execute(text("DELETE FROM orgs WHERE id = :id"), {"id": stored.actor.org_id})
    assert {by_hand, with_org} == forgotten(stored.connections)

    retention.forget(stored.connections)

    assert [] == seqs(stored.connections, by_hand) + seqs(stored.connections, with_org)


def test_events_of_a_deleted_run_are_collected_from_redis(stored: StoredRuns) -> None:
    """No process that has Redis ended the run, so that its stream had days to live."""
    claim, other = stored.claimed(), stored.claimed()
    for one in (claim, other):
        stored.write(one, MessageDelta("I am Ann."))
    with stored.connections.transaction() as tx:
        tx.sql.execute(text("DELETE FROM runs WHERE id = :id"), {"id": claim.run_id})

    retention.forget(stored.connections)

    streams = [stored.published(one.run_id) != [] for one in (claim, other)]
    assert [False, True] == streams
    assert set() == forgotten(stored.connections)


def test_events_are_collected_from_redis_once_it_answers(
    stored: StoredRuns, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events in Postgres are deleted meanwhile, the run stays noted, and the log says why. Half a
    minute later it is looked at again.
    """
    monkeypatch.setattr(retention, "READERS_LEAVE_SECONDS", 60)
    collect_at = forgotten_events.c.collect_at
    claim = stored.claimed()
    stored.write(claim, MessageDelta("I am Ann."))
    with stored.connections.transaction() as tx:
        tx.sql.execute(text("DELETE FROM runs WHERE id = :id"), {"id": claim.run_id})
        tx.sql.execute(update(forgotten_events).values(collect_at=ago(seconds=61)))
    refusing = redis.Redis(port=1, retry=Retry(NoBackoff(), 0))
    away = replace(stored.connections, redis=refusing, redis_outage=Outage(60))

    assert not retention.forget(away)

    assert [] == seqs(stored.connections, claim.run_id)
    assert {claim.run_id} == forgotten(stored.connections)
    assert "tidying up failed: events in Redis" in caplog.text
    with stored.connections.transaction() as tx:
        seconds_pass = collect_at - retention.REDIS_RETURNS
        tx.sql.execute(update(forgotten_events).values(collect_at=seconds_pass))
    assert not retention.forget(stored.connections)
    assert [] == stored.published(claim.run_id)
    assert set() == forgotten(stored.connections)


def test_one_process_forgets_at_a_time(stored: StoredRuns) -> None:
    """The others do nothing and wait for nothing; lost runs are recovered meanwhile."""
    run_id = old(stored).run_id
    claim = stored.claimed(seen_at=ago(seconds=100))
    stored.worker(seen_at=ago(seconds=-3600))
    with stored.connections.transaction() as tx:
        tx.sql.execute(select(func.pg_advisory_xact_lock(retention._LOCK_KEY)))

        retention.forget(stored.connections)
        sweep.sweep(with_short_lease(stored.connections))

        assert "completed" == stored.state(run_id)
        assert "queued" == stored.state(claim.run_id)


def with_short_lease(connections: Connections) -> Connections:
    """Shorten the lease so that Postgres has been up for longer."""
    settings = replace(connections.settings, lease_seconds=0.3, heartbeat_seconds=0.1)
    return replace(connections, settings=settings)


def test_many_at_once_forget_everything_once(stored: StoredRuns) -> None:
    """The next process with the lock continues where the last one was."""
    run_ids = [old(stored, events=number).run_id for number in range(12)]

    in_parallel(4, lambda _: retention.forget(stored.connections))
    while forgotten(stored.connections):
        retention.forget(stored.connections)

    with stored.connections.reading() as sql:
        assert 0 == sql.scalar(select(func.count()).where(runs.c.id.in_(run_ids)))
        assert 0 == sql.scalar(select(func.count()).select_from(run_events))


def test_a_pass_has_an_end(stored: StoredRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left waits for the next one, so that the sweep comes round."""
    monkeypatch.setattr(retention, "BITS_OF_A_PASS", 2)
    run_id = old(stored, events=9).run_id

    assert retention.forget(stored.connections)

    assert [1, 2, 3] == seqs(stored.connections, run_id)


def test_the_longest_retention_stops_no_other_deletion(stored: StoredRuns) -> None:
    """Runs are kept, partitions compared and dead workers forgotten."""
    claim = old(stored)
    worker_id = stored.worker(seen_at=ago(days=2))
    longest = replace(stored.connections.settings, retention_days=MAX_RETENTION_DAYS)

    retention.forget(replace(stored.connections, settings=longest))

    with stored.connections.reading() as sql:
        assert 0 == sql.scalar(select(func.count()).where(workers.c.id == worker_id))
    assert "completed" == stored.state(claim.run_id)


def test_workers_long_gone_are_forgotten(stored: StoredRuns) -> None:
    """A day after they were seen last."""
    gone, there = stored.worker(seen_at=ago(days=2)), stored.worker()

    retention.forget(stored.connections)

    with stored.connections.reading() as sql:
        left = set(sql.scalars(select(workers.c.id)))
    assert (False, True) == (gone in left, there in left)


def test_answers_kept_no_longer_are_forgotten(stored: StoredRuns, alice: User) -> None:
    """A day after they were given."""
    answer = StoredAnswer(status=201, headers={}, body="{}")
    with stored.connections.transaction() as tx:
        for key in ("old", "young"):
            scope = Scope(org_id=alice.org_id, actor_id=alice.id, path="/", key=key)
            idempotency.keep(tx, scope, "hash", answer)
        aged = "UPDATE idempotency_keys SET created_at = now() - interval '25 h' WHERE key = 'old'"
        tx.sql.execute(text(aged))

    retention.forget(stored.connections)

    with stored.connections.reading() as sql:
        assert ["young"] == list(sql.scalars(select(idempotency_keys.c.key)))
