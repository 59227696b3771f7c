"""The deletion of old events with their partition, and where that has to wait."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import insert, text

from arkloop.shared.errors import RunNotFound
from arkloop.shared.events import partitions
from arkloop.shared.ids import new_id
from arkloop.shared.runs import queries, retention
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.outage import Outage
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import runs
from bench.history import past_partitions
from tests import walls
from tests.clients import User
from tests.stored_runs import StoredRuns


@pytest.fixture(autouse=True)
def no_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers have left at once."""
    monkeypatch.setattr(retention, "READERS_LEAVE_SECONDS", 0)


@dataclass
class Past:
    """A database whose events are in partitions of 15 days since 160 days ago."""

    stored: StoredRuns

    def run(self, *, created: int, ended: int | None, events: int = 3) -> UUID:
        """Store a run that was created and ended that many days ago; None for one that waits."""
        moment = datetime.now(UTC) - timedelta(days=created)
        run_id = UUID(int=partitions.bound(moment).int | (new_id().int & (1 << 80) - 1))
        with self.stored.connections.transaction() as tx:
            tx.sql.execute(
                insert(runs).values(
                    id=run_id,
                    org_id=self.stored.actor.org_id,
                    thread_id=self.stored.thread(),
                    created_by_user_id=self.stored.actor.user_id,
                    trace_id="0" * 32,
                    persona_id="assistant@1",
                    route_id="scripted",
                    model="scripted-1",
                    position=1,
                    state="waiting" if ended is None else "completed",
                    queued_at=moment,
                    created_at=moment,
                    ended_at=None if ended is None else datetime.now(UTC) - timedelta(days=ended),
                )
            )
            rows = [
                {"run_id": run_id, "seq": seq, "type": "message.delta", "payload": "{}"}
                for seq in range(1, events + 1)
            ]
            tx.sql.execute(insert(run_events), rows)
        return run_id

    def left(self) -> dict[UUID, int]:
        """Return how many events of each run are left."""
        with self.stored.connections.reading() as sql:
            rows = sql.execute(text("SELECT run_id, count(*) FROM run_events GROUP BY run_id"))
            return {row[0]: row[1] for row in rows}

    def waits(self) -> dict[UUID, float]:
        """Return for how many days from now the events of each forgotten run may wait."""
        days = "extract(epoch FROM collect_at - now()) / 86400"
        with self.stored.connections.reading() as sql:
            rows = sql.execute(text(f"SELECT run_id, {days} FROM forgotten_events"))
            return {row[0]: float(row[1]) for row in rows}

    def notes(self) -> set[UUID]:
        with self.stored.connections.reading() as sql:
            return set(sql.scalars(text("SELECT run_id FROM forgotten_events")))

    def partition_of(self, created: int) -> str:
        """Return the partition for runs that were created that many days ago."""
        moment = partitions.bound(datetime.now(UTC) - timedelta(days=created))
        with self.stored.connections.reading() as sql:
            return next(
                one.name
                for one in partitions.read(sql)
                if one.lower is not None and one.lower <= moment < one.upper
            )

    def names(self) -> list[str]:
        with self.stored.connections.reading() as sql:
            return [one.name for one in partitions.read(sql)]

    def forget(self) -> None:
        """Let retention pass until nothing is left to do."""
        while retention.forget(self.stored.connections):
            pass


@pytest.fixture
def upgraded(connections: Connections, alice: User) -> Past:
    """An empty database that was migrated just now: one partition has all that came before."""
    with owner_of(connections) as owner:
        owner.execute("TRUNCATE runs, run_events, forgotten_events CASCADE")
        for one in owner.execute(
            "SELECT name FROM run_events_partitions() WHERE name ~ '_2|first'"
        ):
            owner.execute(f"DROP TABLE {one[0]}")
        owner.execute(
            "CREATE TABLE run_events_first PARTITION OF run_events FOR VALUES FROM (MINVALUE) TO"
            f" ('{partitions.bound(datetime.now(UTC) + timedelta(days=1))}')"
        )
    return Past(StoredRuns.of(connections, alice))


@pytest.fixture
def past(upgraded: Past) -> Past:
    with owner_of(upgraded.stored.connections) as owner:
        past_partitions.make(owner, days=160)
    return upgraded


def owner_of(connections: Connections) -> psycopg.Connection[Any]:
    """Open a connection of the tables' owner."""
    url = walls.as_user(connections.settings.database_url, "postgres")
    return psycopg.connect(url.replace("+psycopg", "", 1), autocommit=True)


def test_events_go_with_their_partition(past: Past) -> None:
    """When the last run of its time is forgotten the partition is dropped, with all its events."""
    dropped = past.partition_of(110)
    old = [past.run(created=110, ended=109) for _ in range(3)]
    young = past.run(created=20, ended=19)

    past.forget()

    assert dropped not in past.names()
    assert {young: 3} == past.left()
    assert set() == past.notes()
    with past.stored.connections.reading() as sql, pytest.raises(RunNotFound):
        queries.get(sql, past.stored.actor, old[0])


def test_a_partition_waits_for_redis(past: Past) -> None:
    """It has a stream of a run that no process with Redis has ended, and whose note is the only
    trace of it.
    """
    connections, dropped = past.stored.connections, past.partition_of(110)
    stream = connections.keys.events(past.run(created=110, ended=109))
    connections.redis.xadd(stream, {"type": "message.delta", "payload": "{}"}, id="1-0")
    refusing = redis.Redis(port=1, retry=Retry(NoBackoff(), 0))
    away = replace(connections, redis=refusing, redis_outage=Outage(60))

    while retention.forget(away):
        pass

    assert dropped in past.names()
    past.forget()
    assert dropped not in past.names()
    assert not connections.redis.exists(stream)


def test_a_run_that_is_not_old_enough_keeps_its_partition(past: Past) -> None:
    """A run that ended late has all its events; those of the others wait, and nobody sees them."""
    kept = past.partition_of(110)
    late, old = past.run(created=110, ended=80), past.run(created=110, ended=109)

    past.forget()

    assert kept in past.names()
    assert {late: 3, old: 3} == past.left()
    assert {old} == past.notes()
    with past.stored.connections.reading() as sql:
        assert queries.get(sql, past.stored.actor, late)
        with pytest.raises(RunNotFound):
            queries.get(sql, past.stored.actor, old)


def test_a_partition_waits_for_a_run_only_for_so_long(past: Past) -> None:
    """After the time of one more partition the events of forgotten runs are deleted one by one."""
    kept = past.partition_of(140)
    waiting = past.run(created=140, ended=None)
    past.run(created=140, ended=139)

    past.forget()

    assert kept in past.names()
    assert {waiting: 3} == past.left()
    assert set() == past.notes()


@pytest.mark.parametrize(("days", "most"), [(90, 30), (7, 2), (1, 2)])
def test_a_partition_of_a_longer_retention_is_not_waited_for(
    upgraded: Past, days: int, most: int
) -> None:
    """Events of a run that is deleted after a shorter one wait for a third of that, or two days:
    their partition is that of runs to come, too.
    """
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    bounds = [partitions.bound(today + timedelta(days=day)) for day in (-200, 400)]
    with owner_of(upgraded.stored.connections) as owner:
        owner.execute("DROP TABLE run_events_first")
        owner.execute("SELECT add_run_events_partition(%s, %s)", bounds)
    old = upgraded.run(created=100, ended=99)
    young = upgraded.run(created=0, ended=0)
    shortened = replace(
        upgraded.stored.connections,
        settings=replace(upgraded.stored.connections.settings, retention_days=days),
    )

    retention.forget(shortened)

    assert {old: 3, young: 3} == upgraded.left()
    assert {old: pytest.approx(most, abs=0.1)} == upgraded.waits()
    with owner_of(upgraded.stored.connections) as owner:
        owner.execute(
            "UPDATE forgotten_events SET collect_at = collect_at - make_interval(days => %s)",
            [most],
        )
    retention.forget(shortened)
    assert {young: 3} == upgraded.left()
    assert {} == upgraded.waits()


def test_runs_that_were_deleted_before_wait_no_longer_either(past: Past) -> None:
    """A shorter retention counts for the events of earlier deletions, from the next sweep on."""
    later, sooner = past.run(created=20, ended=19), past.run(created=20, ended=19)
    with owner_of(past.stored.connections) as owner:
        owner.execute("DELETE FROM runs WHERE id = ANY(%s)", [[later, sooner]])
        for run_id, days in ((later, 400), (sooner, 29)):
            owner.execute(
                "UPDATE forgotten_events SET collect_at = now() + make_interval(days => %s)"
                " WHERE run_id = %s",
                [days, run_id],
            )

    past.forget()

    assert {later: 3, sooner: 3} == past.left()
    assert {later: 30, sooner: 29} == pytest.approx(past.waits(), abs=0.1)


def test_what_is_deleted_by_hand_does_not_wait_for_the_partition(past: Past) -> None:
    """Events of an erased run go at once, while its partition has others."""
    erased, other = past.run(created=110, ended=80), past.run(created=110, ended=80)
    with past.stored.connections.transaction() as tx:
        tx.sql.execute(text("DELETE FROM runs WHERE id = :id"), {"id": erased})

    past.forget()

    assert {other: 3} == past.left()


def test_readers_have_time_to_leave(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition is not dropped in the minute in which its last run was forgotten."""
    monkeypatch.setattr(retention, "READERS_LEAVE_SECONDS", 60)
    old = past.run(created=110, ended=109)

    past.forget()

    assert {old: 3} == past.left()
    assert past.partition_of(110) in past.names()


def test_a_partition_that_somebody_reads_is_dropped_later(past: Past) -> None:
    """A dump keeps its table, and nobody waits behind the drop that gave up."""
    kept = past.partition_of(110)
    old = past.run(created=110, ended=109)
    with owner_of(past.stored.connections) as dump, dump.transaction():
        dump.execute(f"SELECT FROM {kept}")
        past.forget()
        assert kept in past.names()
        assert {old: 3} == past.left()

    past.forget()

    assert kept not in past.names()


@pytest.mark.parametrize("orgs", ["", "*"])
def test_a_partition_with_a_run_cannot_be_dropped(past: Past, orgs: str) -> None:
    """The statement is refused, whether its role could see the run or not."""
    run_id = past.run(created=110, ended=80)
    walled = walls.put_up(past.stored.connections.settings.database_url)
    drop = "SELECT drop_run_events_partition(%s)"
    with psycopg.connect(walled.replace("+psycopg", "", 1), autocommit=True) as service:
        service.execute("SELECT set_config('arkloop.orgs', %s, false)", [orgs])
        for name in (past.partition_of(110), past.partition_of(1), "run_events_default", "runs"):
            assert (False,) == service.execute(drop, [name]).fetchone()

    assert {run_id: 3} == past.left()


def test_events_from_before_are_collected_bit_by_bit(upgraded: Past) -> None:
    """The first partition may be as large as the table was: nothing in it waits for its end."""
    upgraded.run(created=110, ended=109)
    young = upgraded.run(created=20, ended=19)

    upgraded.forget()

    assert ["run_events_first"] == upgraded.names()
    assert {young: 3} == upgraded.left()
