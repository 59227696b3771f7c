"""Runs that wait for their thread: the end of the active run starts the next one."""

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy import delete, func, select, update

from arkloop.shared import metrics
from arkloop.shared.errors import ThreadBusy
from arkloop.shared.runs import sweep, tidying, waiting_runs
from arkloop.shared.runs.creation import Created
from arkloop.shared.runs.endings import Outcome
from arkloop.shared.storage.tables.accounts import orgs
from arkloop.shared.storage.tables.runs import runs, workers
from arkloop.shared.storage.tables.threads import threads
from tests.clients import Register
from tests.counted import counted
from tests.query_plans import Plans, noted
from tests.shared.runs.busy_thread import LATER, BusyThread
from tests.shared.runs.test_endings import cancelled, completed, failed
from tests.stored_runs import StoredRuns, ago
from tests.waiting import in_parallel


@pytest.fixture
def thread(stored: StoredRuns) -> BusyThread:
    return BusyThread(stored)


def test_runs_start_in_the_order_of_their_creation(thread: BusyThread) -> None:
    """Each starts when the one before it has ended, and the thread reads as if they had waited."""
    first, second, third = (thread.say(text) for text in ("a", "b", "c"))

    assert [None, 1, 2] == [made.position for made in (first, second, third)]
    assert ["queued", "pending", "pending"] == thread.states()
    assert [first.run_id] == thread.stored.sent

    for made, said in ((first, "A"), (second, "B"), (third, "C")):
        thread.answer(made.run_id, said)

    assert ["completed"] * 3 == thread.states()
    assert ["a", "A", "b", "B", "c", "C"] == thread.texts()
    assert [first.run_id, second.run_id, third.run_id] == thread.stored.sent


def test_a_message_that_waits_is_not_seen_by_the_active_run(thread: BusyThread) -> None:
    """A run that starts is behind everything that was said meanwhile, and before what waits."""
    first, second = thread.say("a"), thread.say("b")
    third = thread.say("c")
    thread.answer(first.run_id, "A")

    rows = [thread.stored.row(made.run_id)["position"] for made in (first, second, third)]

    assert [2, 4] == rows[:2]
    assert rows[2] > 1_000_000
    with thread.stored.connections.reading() as sql:
        next_position = select(threads.c.next_position).where(threads.c.id == thread.id)
        assert 5 == sql.scalar(next_position)


def later(stored: StoredRuns, seconds: float) -> Created:
    """Create a scheduled run, in a thread of its own, whose time came this long ago."""
    made = BusyThread(stored).say("a", not_before=LATER)
    stored.set(made.run_id, not_before=ago(seconds=seconds))
    return made


def _by_worker(thread: BusyThread, run_id: UUID) -> None:
    thread.answer(run_id, "A")


def _by_failure(thread: BusyThread, run_id: UUID) -> None:
    assert Outcome.ENDED == thread.end(failed(thread.claim(run_id)))


def _by_cancel_while_queued(thread: BusyThread, run_id: UUID) -> None:
    thread.stored.cancel(run_id)


def _by_cancel_while_executing(thread: BusyThread, run_id: UUID) -> None:
    claim = thread.claim(run_id)
    thread.stored.cancel(run_id)
    assert Outcome.ENDED == thread.end(cancelled(claim))


def _by_expiry(thread: BusyThread, run_id: UUID) -> None:
    thread.stored.park(thread.claim(run_id), run_id, expires_in=-1)
    sweep.sweep(thread.stored.connections)


def _by_crashes(thread: BusyThread, run_id: UUID) -> None:
    claim = thread.claim(run_id)
    thread.stored.set(run_id, crashes=3)
    with thread.stored.connections.transaction() as tx:
        tx.sql.execute(delete(workers).where(workers.c.id == thread.stored.row(run_id)["owner"]))
    sweep.sweep(thread.stored.connections)
    assert "failed" == thread.stored.state(claim.run_id)


@pytest.mark.parametrize(
    "end",
    [
        _by_worker,
        _by_failure,
        _by_cancel_while_queued,
        _by_cancel_while_executing,
        _by_expiry,
        _by_crashes,
    ],
)
def test_every_kind_of_end_starts_the_next_run(
    thread: BusyThread, end: Callable[[BusyThread, UUID], None]
) -> None:
    """The next run is queued, and announced, by whatever ends the one before it."""
    first, second = thread.say("a"), thread.say("b")

    end(thread, first.run_id)

    assert "queued" == thread.stored.state(second.run_id)
    assert second.run_id == thread.stored.sent[-1]


def test_no_end_overlooks_a_run_that_comes_at_the_same_moment(stored: StoredRuns) -> None:
    """One of the two comes first, and the new run is started either way."""
    busy = [BusyThread(stored) for _ in range(12)]
    endings = [completed(thread.claim(thread.say("a").run_id)) for thread in busy]

    def act(number: int) -> object:
        thread = busy[number // 2]
        return thread.say("b") if number % 2 else thread.end(endings[number // 2])

    in_parallel(24, act)

    assert [["completed", "queued"]] * 12 == [thread.states() for thread in busy]


@pytest.mark.parametrize("state", ["pending", "scheduled"])
def test_the_end_of_a_waiting_run_is_in_the_metrics(thread: BusyThread, state: str) -> None:
    """An operator sees all cancelled runs, also those that never began."""
    thread.say("a")
    waiting = thread.say("b", **({"not_before": LATER} if state == "scheduled" else {}))
    assert state == thread.stored.state(waiting.run_id)

    with counted(metrics.RUNS_ENDED) as seen:
        thread.stored.cancel(waiting.run_id)

    assert {("cancelled", ""): [1]} == seen


def test_a_waiting_run_is_cancelled_at_once(thread: BusyThread) -> None:
    """Its message leaves the thread, its stream has one event, and the others move up."""
    first, second, third = (thread.say(text) for text in ("a", "b", "c"))

    thread.stored.cancel(second.run_id)

    assert ["queued", "cancelled", "pending"] == thread.states()
    assert ["run.cancelled"] == thread.stored.types(second.run_id)
    thread.answer(first.run_id, "A")
    assert "queued" == thread.stored.state(third.run_id)
    assert ["a", "A", "c"] == thread.texts()


def test_a_scheduled_run_starts_when_its_time_has_come(thread: BusyThread) -> None:
    """Its thread is free until then."""
    first, later = thread.say("a"), thread.say("b", not_before=LATER)
    thread.answer(first.run_id, "A")

    sweep.sweep(thread.stored.connections)
    assert ["completed", "scheduled"] == thread.states()

    thread.stored.set(later.run_id, not_before=func.now())
    sweep.sweep(thread.stored.connections)
    assert ["completed", "queued"] == thread.states()
    assert ["a", "A", "b"] == thread.texts()


def test_cancelled_runs_do_not_keep_scheduled_ones_waiting(
    thread: BusyThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be more than one look finds, and in an org that was moved they stay for good."""
    monkeypatch.setattr(waiting_runs, "BATCH", 1)
    cancelled, due = (thread.say(text, not_before=LATER) for text in "ab")
    thread.stored.set(cancelled.run_id, cancel_requested_at=func.now(), not_before=ago(seconds=9))
    thread.stored.set(due.run_id, not_before=ago(seconds=1))

    waiting_runs.start_due(thread.stored.connections)
    assert ["scheduled", "queued"] == thread.states()


def test_due_runs_start_in_turns_of_their_orgs(
    stored: StoredRuns, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An org with very many does not delay those of others, and one pass makes several looks."""
    monkeypatch.setattr(waiting_runs, "BATCH", 1)
    monkeypatch.setattr(waiting_runs, "DUE_AT_ONCE", 2)
    monkeypatch.setattr(waiting_runs, "PASS_SECONDS", 600)
    other = StoredRuns.of(stored.connections, register())
    many = [later(stored, seconds=60 - at).run_id for at in range(4)]
    few = [later(other, seconds=9 - at).run_id for at in range(2)]
    sent: list[UUID] = []

    with noted(stored.connections) as statements:
        waiting_runs.start_due(replace(stored.connections, enqueue=sent.extend))

    in_turns = next(one for one in statements if one[0].startswith("WITH RECURSIVE step"))
    Plans(stored.connections, in_turns).check({"ix_runs_scheduled_org_id_not_before"})
    assert [many[0], few[0], many[1], few[1], *many[2:]] == sorted(sent, key=sent.index)


def test_a_pass_ends_in_time_and_the_next_one_starts_the_rest(
    stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What else the sweep does is not delayed by very many that are due."""
    due = [later(stored, seconds=9 - at).run_id for at in range(2)]
    monkeypatch.setattr(waiting_runs, "BATCH", 1)
    monkeypatch.setattr(waiting_runs, "PASS_SECONDS", -1)

    waiting_runs.start_due(stored.connections)
    assert ["queued", "scheduled"] == [stored.state(run_id) for run_id in due]
    waiting_runs.start_due(stored.connections)
    assert ["queued", "queued"] == [stored.state(run_id) for run_id in due]


def test_a_locked_thread_does_not_keep_due_runs_of_others_waiting(stored: StoredRuns) -> None:
    """Its own run starts when the lock is released."""
    locked, free = later(stored, seconds=9), later(stored, seconds=1)
    with stored.connections.transaction() as tx:
        tx.sql.execute(select(threads).where(threads.c.id == locked.thread_id).with_for_update())
        waiting_runs.start_due(stored.connections)
        assert ["scheduled", "queued"] == [stored.state(made.run_id) for made in (locked, free)]

    waiting_runs.start_due(stored.connections)
    assert "queued" == stored.state(locked.run_id)


def test_a_due_run_that_cannot_be_started_does_not_stop_the_others(
    stored: StoredRuns, caplog: pytest.LogCaptureFixture
) -> None:
    """The failure is logged, and the run is found again."""
    broken, sound = later(stored, seconds=9), later(stored, seconds=1)

    def place_messages_from(position: int) -> None:
        of_thread = update(threads).where(threads.c.id == broken.thread_id)
        with stored.connections.transaction() as tx:
            tx.sql.execute(of_thread.values(next_position=position))

    place_messages_from(9223372036854775807)  # there is no place behind it
    waiting_runs.start_due(stored.connections)
    assert ["scheduled", "queued"] == [stored.state(made.run_id) for made in (broken, sound)]
    [error] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert str(broken.run_id) in error.getMessage()

    place_messages_from(1)
    waiting_runs.start_due(stored.connections)
    assert "queued" == stored.state(broken.run_id)


def test_a_scheduled_run_waits_for_a_busy_thread(thread: BusyThread) -> None:
    """When its time comes it waits behind those that came before."""
    first = thread.say("a")
    later = thread.say(
        "b", not_before=thread.stored.row(first.run_id)["created_at"].replace(year=2090)
    )
    third = thread.say("c")
    thread.stored.set(later.run_id, not_before=func.now())

    sweep.sweep(thread.stored.connections)
    assert ["queued", "pending", "pending"] == thread.states()

    for made, said in ((first, "A"), (third, "C"), (later, "B")):
        thread.answer(made.run_id, said)
    assert ["a", "A", "c", "C", "b", "B"] == thread.texts()


def test_a_thread_with_a_run_that_waits_for_input_is_held(thread: BusyThread) -> None:
    """What waits behind it waits until it has ended."""
    first = thread.say("a")
    thread.stored.park(thread.claim(first.run_id), first.run_id)
    second = thread.say("b")

    with pytest.raises(ThreadBusy):
        thread.say("c", "reject")
    thread.stored.answer(first.run_id, "yes")

    assert ["queued", "pending"] == thread.states()
    thread.stored.cancel(first.run_id)
    assert "queued" == thread.stored.state(second.run_id)


def delete_row(made: Created, stored: StoredRuns) -> None:
    """Delete a run as an operator does, by hand."""
    with stored.connections.transaction() as tx:
        tx.sql.execute(delete(runs).where(runs.c.id == made.run_id))


def test_a_run_behind_a_deleted_one_starts(thread: BusyThread) -> None:
    """No end has started it; those behind it wait for their turn, also at the next look."""
    first, second, third = (thread.say(text) for text in ("a", "b", "c"))
    thread.stored.park(thread.claim(first.run_id), first.run_id)
    delete_row(first, thread.stored)

    for _ in range(2):
        tidying.tidy(thread.stored.connections)

    assert ["queued", "pending"] == thread.states()
    assert second.run_id == thread.stored.sent[-1]
    thread.answer(second.run_id, "B")
    assert "queued" == thread.stored.state(third.run_id)
    assert ["a", "b", "B", "c"] == thread.texts()


def test_a_run_behind_a_deleted_one_starts_in_a_busy_thread(thread: BusyThread) -> None:
    """A request that has overtaken it looks for nobody at its end, unless a look came before."""
    first, second = thread.say("a"), thread.say("b")
    delete_row(first, thread.stored)
    later = thread.say("c")

    tidying.tidy(thread.stored.connections)
    thread.answer(later.run_id, "C")

    assert "queued" == thread.stored.state(second.run_id)


def test_runs_behind_a_deleted_one_end_in_a_thread_that_is_gone(thread: BusyThread) -> None:
    """They are cancelled, as the end of the deleted run would have done."""
    first, second = thread.say("a"), thread.say("b")
    delete_row(first, thread.stored)
    gone = update(threads).where(threads.c.id == thread.id).values(deleted_at=func.now())
    with thread.stored.connections.transaction() as tx:
        tx.sql.execute(gone)

    tidying.tidy(thread.stored.connections)

    assert ["run.cancelled"] == thread.stored.types(second.run_id)


def test_a_run_behind_a_deleted_one_does_not_start_for_a_suspended_org(thread: BusyThread) -> None:
    """It starts once the org is resumed; one that was moved stays as its copy has it."""
    first, second = thread.say("a"), thread.say("b")
    delete_row(first, thread.stored)
    for suspended_at, state in ((func.now(), "pending"), (None, "queued")):
        with thread.stored.connections.transaction() as tx:
            suspended = update(orgs).where(orgs.c.id == thread.stored.actor.org_id)
            tx.sql.execute(suspended.values(suspended_at=suspended_at))

        tidying.tidy(thread.stored.connections)

        assert state == thread.stored.state(second.run_id)


def test_many_threads_with_a_deleted_run_take_several_looks(
    stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look but the last one says that more may be left."""
    monkeypatch.setattr(waiting_runs, "BATCH", 1)
    busy = [BusyThread(stored) for _ in range(2)]
    for thread in busy:
        first, _ = thread.say("a"), thread.say("b")
        delete_row(first, stored)

    looks = [waiting_runs.start_unblocked(stored.connections) for _ in range(3)]

    assert [True, True, False] == looks
    assert [["queued"]] * 2 == [thread.states() for thread in busy]
