"""The visibility of runs in threads that have very many of them."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import RowMapping, func, literal_column, select, update

from arkloop.shared.actors import Actor
from arkloop.shared.errors import Forbidden, ThreadBusy, Unavailable
from arkloop.shared.ids import new_id
from arkloop.shared.runs import thread_changes, tidying, visible_runs
from arkloop.shared.storage.tables.accounts import orgs
from arkloop.shared.storage.tables.billing import run_usage
from arkloop.shared.storage.tables.runs import runs
from arkloop.shared.storage.tables.threads import threads
from tests.clients import Register, User
from tests.query_plans import Plans, noted
from tests.shared.runs.test_queries import actor_of, beside, listed
from tests.stored_runs import StoredRuns, add_copies, ago

#: Beyond those that the trigger writes with their thread.
LEFT = 7
COUNT = visible_runs.WRITTEN_WITH_THREAD + LEFT
METADATA = {"shop": "a"}


@dataclass(frozen=True)
class LongThread:
    """A public thread of very many runs that have ended. The oldest two have metadata."""

    stored: StoredRuns
    other: Actor  # another member
    id: UUID

    def rows(self) -> list[UUID | None]:
        """Return who sees each run, the oldest first, and at last the thread."""
        of_runs = select(runs.c.visible_to).where(runs.c.thread_id == self.id)
        of_thread = select(threads.c.visible_to).where(threads.c.id == self.id)
        with self.stored.connections.reading() as sql:
            return [*sql.scalars(of_runs.order_by(runs.c.position)), sql.scalar(of_thread)]

    def versions(self) -> set[str]:
        """Return the places of its runs' rows, which change when they are written."""
        query = select(literal_column("ctid::text")).select_from(runs)
        with self.stored.connections.reading() as sql:
            return {*sql.scalars(query.where(runs.c.thread_id == self.id))}

    def reported(self) -> list[Any]:
        """Return the metadata of the usage of its runs that have any."""
        query = select(run_usage.c.metadata).join(runs, runs.c.id == run_usage.c.run_id)
        query = query.where(runs.c.thread_id == self.id).order_by(runs.c.position)
        with self.stored.connections.reading() as sql:
            return [*sql.scalars(query)]

    def due(self) -> bool:
        """Return whether the sweep is to look at it, now or later."""
        query = select(threads.c.runs_due_at).where(threads.c.id == self.id)
        with self.stored.connections.reading() as sql:
            return sql.scalar(query) is not None

    def delete(self) -> bool:
        with self.stored.connections.transaction() as tx:
            return thread_changes.delete(tx, self.stored.actor, self.id)

    def change(self, **changes: Any) -> None:
        with self.stored.connections.transaction() as tx:
            thread_changes.change(tx, self.stored.actor, self.id, **changes)

    def hide_ahead(self, actor: Actor | None = None) -> None:
        visible_runs.hide_ahead(self.stored.connections, actor or self.stored.actor, self.id)

    def sweep(self) -> None:
        while tidying.tidy(self.stored.connections):
            pass


def add_runs(stored: StoredRuns, thread_id: UUID, count: int, **columns: Any) -> None:
    """Add runs that have ended, the first one with its usage."""
    claim = stored.held(stored.create(thread_id, **columns))
    stored.finish(claim)
    add_copies(stored.connections, claim.run_id, count - 1)


@pytest.fixture
def long(stored: StoredRuns, register: Register, alice: User) -> LongThread:
    return long_thread(stored, register(org_of=alice, role="member"))


def long_thread(stored: StoredRuns, other: User) -> LongThread:
    thread_id = stored.thread()
    for _ in range(2):
        add_runs(stored, thread_id, 1, metadata=METADATA)
    add_runs(stored, thread_id, COUNT - 2)
    return LongThread(stored, actor_of(other), thread_id)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that have time for one batch, in each of which are few runs."""
    monkeypatch.setattr(visible_runs, "WRITTEN_AT_ONCE", 3)
    monkeypatch.setattr(visible_runs, "REQUEST_SECONDS", -1)


def own_only(long: LongThread) -> list[UUID | None]:
    return [long.stored.actor.user_id] * (COUNT + 1)


def of_org(long: LongThread) -> list[UUID | None]:
    return [long.stored.actor.org_id] * (COUNT + 1)


@pytest.mark.usefixtures("batches")
def test_a_deleted_thread_leaves_its_oldest_runs_to_batches(long: LongThread) -> None:
    """Its deletion writes the newest; the request a batch, and the sweep the rest."""
    org_id = long.stored.actor.org_id

    assert long.delete()
    assert [org_id] * LEFT + [None] * (COUNT - LEFT + 1) == long.rows()

    visible_runs.finish(long.stored.connections, long.id)
    assert LEFT - 3 == len(listed(long.stored.connections, long.other))

    long.sweep()
    assert [None] * (COUNT + 1) == long.rows()
    assert [METADATA, METADATA] == long.reported()[:2]
    assert not long.due()


def test_a_private_thread_becomes_public_before_its_oldest_runs(long: LongThread) -> None:
    """Others see none of its runs until they see it; usage reports have their metadata again."""
    actor = long.stored.actor
    long.change(is_private=True)
    assert own_only(long) == long.rows()
    assert [{}, {}] == long.reported()[:2]

    long.change(is_private=False)
    newest = [actor.org_id] * (COUNT - LEFT + 1)
    assert [actor.user_id] * LEFT + newest == long.rows()
    assert COUNT == len(listed(long.stored.connections, actor))

    long.sweep()
    assert of_org(long) == long.rows()
    assert [METADATA, METADATA] == long.reported()[:2]
    assert not long.due()


@pytest.mark.usefixtures("batches")
def test_what_has_not_ended_changes_with_its_thread(long: LongThread) -> None:
    """An active run starts sub-runs for those who see it. This one is older than many."""
    long.change(is_private=True)
    with long.stored.connections.reading() as sql:
        query = select(runs.c.id).where(runs.c.thread_id == long.id)
        oldest = sql.scalar(query.order_by(runs.c.position).limit(1))
    assert oldest is not None
    long.stored.set(oldest, state="suspended", ended_at=None)

    long.change(is_private=False)

    assert long.stored.actor.org_id == long.rows()[0]
    assert long.stored.actor.user_id == long.rows()[1]


def test_requests_that_are_repeated_make_a_long_thread_private(
    long: LongThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each continues where the one before has stopped; the creator sees all runs meanwhile."""
    connections, actor = long.stored.connections, long.stored.actor
    monkeypatch.setattr(visible_runs, "REQUEST_SECONDS", -1)

    with pytest.raises(Unavailable, match="Send the request again") as caught:
        long.hide_ahead()
    assert 1 == caught.value.retry_after
    first = COUNT - visible_runs.WRITTEN_AT_ONCE
    assert [actor.org_id] * first == long.rows()[:first]
    assert first == len(listed(connections, long.other))
    assert COUNT == len(listed(connections, actor))

    with pytest.raises(Unavailable):
        long.hide_ahead()
    assert first - visible_runs.WRITTEN_AT_ONCE == len(listed(connections, long.other))

    monkeypatch.setattr(visible_runs, "REQUEST_SECONDS", 60)
    long.hide_ahead()
    assert [] == listed(connections, long.other)
    assert [{}, {}] == long.reported()[:2]
    written = long.versions()
    long.change(is_private=True)
    assert written == long.versions()
    assert own_only(long) == long.rows()
    assert not long.due()
    assert COUNT == len(listed(connections, actor))


def give_up(long: LongThread) -> None:
    """Let the time pass in which the request might be repeated."""
    with long.stored.connections.transaction() as tx:
        passed = update(threads).where(threads.c.id == long.id)
        tx.sql.execute(passed.values(runs_due_at=ago(seconds=1)))


def test_a_long_thread_that_stays_public_has_all_of_its_runs_again(long: LongThread) -> None:
    """The request was not repeated, or ended in an error: the sweep gives it two minutes."""
    long.hide_ahead()
    long.sweep()
    assert [] == listed(long.stored.connections, long.other)

    give_up(long)
    long.sweep()

    assert of_org(long) == long.rows()
    assert [METADATA, METADATA] == long.reported()[:2]
    assert not long.due()


@pytest.mark.usefixtures("batches")
def test_a_thread_whose_change_is_taken_back_has_all_of_its_runs_at_once(long: LongThread) -> None:
    """The request that keeps it public writes a batch of them, and the sweep the rest."""
    with pytest.raises(Unavailable):
        long.hide_ahead()
    assert COUNT - 3 == len(listed(long.stored.connections, long.other))

    long.change(is_private=False)
    visible_runs.finish(long.stored.connections, long.id)
    assert COUNT == len(listed(long.stored.connections, long.other))

    long.sweep()
    assert not long.due()
    long.change(is_private=False)
    assert not long.due()


@pytest.mark.parametrize("is_taken_back", [False, True])
def test_a_thread_that_is_given_up_can_be_deleted(
    long: LongThread, is_taken_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of its runs is hidden, and not shown again; reports have all of their metadata
    again, also of runs that the trigger writes.
    """
    connections = long.stored.connections
    for count, columns in ((1, {"metadata": METADATA}), (5, {})):
        add_runs(long.stored, long.id, count, **columns)
    long.hide_ahead()
    assert [{}] * 5 == long.reported()
    monkeypatch.setattr(visible_runs, "WRITTEN_AT_ONCE", 3)
    monkeypatch.setattr(visible_runs, "REQUEST_SECONDS", -1)
    if is_taken_back:
        long.change(is_private=False)
        visible_runs.finish(connections, long.id)
    long.delete()

    long.sweep()

    assert [None] * (COUNT + 7) == long.rows()
    assert [METADATA, METADATA, {}, METADATA, {}] == long.reported()
    assert not long.due()


def test_a_thread_becomes_private_while_its_runs_are_made_public(
    long: LongThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the batch. Otherwise others would see the runs of that, and not the thread."""
    long.hide_ahead()
    give_up(long)
    monkeypatch.setattr(visible_runs, "PASS_SECONDS", -1)
    joins: list[Callable[[], None]] = []
    locked = visible_runs._locked

    def changed_meanwhile(*args: Any) -> RowMapping | None:
        found = locked(*args)
        joins.append(beside(long.stored.connections, lambda: long.change(is_private=True)))
        return found

    with monkeypatch.context() as patched:
        patched.setattr(visible_runs, "_locked", changed_meanwhile)
        visible_runs.correct_left(long.stored.connections)
    for join in joins:
        join()

    assert 1 == len(joins)
    assert own_only(long) == long.rows()
    assert [{}, {}] == long.reported()[:2]
    assert not long.due()


def test_the_sweep_leaves_orgs_alone_that_are_suspended(long: LongThread) -> None:
    """Their rows may be copied to another cell, in the state of one moment."""
    long.delete()
    of_org = update(orgs).where(orgs.c.id == long.stored.actor.org_id)
    for suspended_at in (func.now(), None):
        with long.stored.connections.transaction() as tx:
            tx.sql.execute(of_org.values(suspended_at=suspended_at))
        long.sweep()
        assert long.due() == (suspended_at is not None)


def test_only_those_who_may_write_a_thread_hide_its_runs(long: LongThread) -> None:
    """Nothing is written for other members, other orgs, or end users."""
    own = long.stored.actor
    long.hide_ahead(replace(own, org_id=new_id()))
    for actor in (long.other, replace(own, end_user_id="u")):
        long.change(end_user_id="u")
        with pytest.raises(Forbidden):
            long.hide_ahead(actor)

    assert of_org(long) == long.rows()
    assert not long.due()


def test_a_long_thread_with_an_active_run_is_not_deleted(long: LongThread) -> None:
    """None of its runs is hidden."""
    long.stored.create(long.id)

    with pytest.raises(ThreadBusy):
        long.delete()

    assert {long.stored.actor.org_id} == {*long.rows()}


def test_a_short_thread_costs_one_statement_more(stored: StoredRuns) -> None:
    """Its runs change with it, as ever."""
    connections, thread_id = stored.connections, stored.thread()
    add_runs(stored, thread_id, 3)
    with noted(connections) as statements:
        visible_runs.hide_ahead(connections, stored.actor, thread_id)
    assert 1 == len(statements)

    short = LongThread(stored, stored.actor, thread_id)
    for is_private, whose in ((True, stored.actor.user_id), (False, stored.actor.org_id)):
        short.change(is_private=is_private)
        assert [whose] * 4 == short.rows()
        assert not short.due()
    assert not short.delete()
    assert [None] * 4 == short.rows()


@pytest.mark.owner
def test_a_batch_reads_its_own_runs(long: LongThread) -> None:
    """The batch finds them by position, and their usage, however many others there are."""
    connections, other_id = long.stored.connections, long.stored.thread()
    add_runs(long.stored, other_id, 9_000)
    with connections.transaction() as tx:
        tx.sql.exec_driver_sql(
            "INSERT INTO threads (id, org_id, created_by_user_id)"
            " SELECT gen_random_uuid(), org_id, created_by_user_id"
            " FROM threads, generate_series(1, 9000) WHERE id = %s",
            (other_id,),
        )
        names = [column.name for column in run_usage.columns if column.name != "run_id"]
        tx.sql.exec_driver_sql(
            f"INSERT INTO run_usage (run_id, {', '.join(names)})"
            f" SELECT r.id, {', '.join(f'u.{name}' for name in names)}"
            " FROM run_usage u JOIN runs o ON o.id = u.run_id"
            " JOIN runs r ON r.thread_id = o.thread_id AND r.id <> o.id WHERE o.thread_id = %s",
            (other_id,),
        )
    with connections.engine.connect() as sql:
        sql.execution_options(isolation_level="AUTOCOMMIT")
        sql.exec_driver_sql("ANALYZE runs, run_usage, threads")
    long.hide_ahead()
    give_up(long)
    with noted(connections) as statements:
        visible_runs.correct_left(connections)
    due, seen, reported = (
        next(one for one in statements if part in one[0])
        for part in ("JOIN orgs o", "corrected AS", "UPDATE run_usage")
    )

    Plans(connections, due).check({"ix_threads_runs_due_at", "pk_orgs"})
    Plans(connections, seen).check({"ix_runs_thread_id_position"})
    plans = Plans(connections, reported)
    for plan in (plans.of_values, plans.of_any):
        used = {"ix_runs_thread_id_position", "pk_run_usage"}
        assert used == {*re.findall(r"'Index Name': '(\w+)'", str(plan))}
