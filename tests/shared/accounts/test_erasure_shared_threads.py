"""The export and the erasure of what an end user has said in threads that are not theirs."""

from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, insert, select, update

from arkloop.shared.accounts import erasure
from arkloop.shared.accounts.erasure import RunsGoOn
from arkloop.shared.billing import budget_limits, spending
from arkloop.shared.billing.spending import end_user_scope
from arkloop.shared.events.types import ContextCompacted, RunSteered
from arkloop.shared.runs import creation, offered_messages, sweep
from arkloop.shared.runs.creation import Created
from arkloop.shared.runs.endings import Outcome
from arkloop.shared.storage.tables.accounts import erasures
from arkloop.shared.storage.tables.delivery import webhook_deliveries
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import runs
from arkloop.shared.storage.tables.threads import messages, thread_contexts
from arkloop.shared.threads import thread_contexts as points
from tests.clients import User
from tests.end_users import ANN, BOB
from tests.shared.runs.busy_thread import LATER, BusyThread
from tests.shared.runs.delegated_runs import delegated
from tests.shared.runs.test_endings import cancelled, completed
from tests.shared.runs.test_queries import beside
from tests.stored_deliveries import endpoint
from tests.stored_runs import StoredRuns, ago


@pytest.fixture
def thread(stored: StoredRuns, monkeypatch: pytest.MonkeyPatch) -> BusyThread:
    """A thread of no end user's; an erasure waits for no run in it."""
    monkeypatch.setattr(erasure, "RUNS_END_SECONDS", 0)
    return BusyThread(stored)


def exported(thread: BusyThread, end_user_id: str = ANN) -> list[str]:
    """Return the messages that the export of an end user has."""
    stored = thread.stored
    entries = erasure.export_end_user(stored.connections, stored.actor.org_id, end_user_id)
    return [entry["content"] for entry in entries if entry["type"] == "message"]


def erase(thread: BusyThread, end_user_id: str = ANN) -> None:
    erasure.erase_end_user(thread.stored.connections, thread.stored.actor.org_id, end_user_id)


def kept(thread: BusyThread) -> list[str]:
    """Return all messages of the thread, those too that no list shows."""
    of_thread = select(messages.c.content).where(messages.c.thread_id == thread.id)
    with thread.stored.connections.reading() as sql:
        return list(sql.scalars(of_thread.order_by(messages.c.position)))


@pytest.mark.parametrize("more", [{}, {"not_before": LATER}], ids=["pending", "scheduled"])
def test_a_message_that_waited_is_erased(thread: BusyThread, more: dict[str, Any]) -> None:
    """The erasure cancels its run, which leaves it where it has waited; others go on waiting."""
    thread.say("theirs")
    thread.say("Ann waits", end_user_id=ANN, **more)
    thread.say("another waits")
    assert ["Ann waits"] == exported(thread)

    with pytest.raises(RunsGoOn):
        erase(thread)
    sweep.sweep(thread.stored.connections)
    erase(thread)

    assert ["theirs", "another waits"] == kept(thread)


def test_all_messages_of_a_merged_run_are_erased(thread: BusyThread) -> None:
    """What others have posted before it is no part of the run."""
    first = thread.say("theirs")
    merged = [thread.say(text, "merge", end_user_id=ANN) for text in ("one", "two", "three")]
    thread.answer(first.run_id, "answer")
    thread.answer(merged[0].run_id, "to Ann")
    assert ["one", "two", "three", "to Ann"] == exported(thread)

    erase(thread)

    assert ["theirs", "answer"] == kept(thread)


def test_what_others_have_posted_while_a_run_waited_is_kept(
    thread: BusyThread, alice: User
) -> None:
    """A run that starts is moved behind it, with all of its own messages."""
    active = thread.say("theirs")
    waiting = thread.say("Ann waits", "merge", end_user_id=ANN)
    alice.say(str(thread.id), "somebody else asks")
    thread.say("Ann adds", "merge", end_user_id=ANN)
    thread.answer(active.run_id, "answer")
    thread.answer(waiting.run_id, "to Ann")
    order = ["somebody else asks", "Ann waits", "Ann adds", "to Ann"]
    assert ["theirs", "answer", *order] == kept(thread)
    assert ["Ann waits", "Ann adds", "to Ann"] == exported(thread)

    erase(thread)

    assert ["theirs", "answer", "somebody else asks"] == kept(thread)


def test_what_others_have_posted_before_a_run_is_kept(thread: BusyThread, alice: User) -> None:
    """A run with a message of its own has no other; one without has all that it answers."""
    alice.say(str(thread.id), "somebody asks")
    thread.answer(thread.say("Ann asks", end_user_id=ANN).run_id, "to Ann")
    for text in ("Bob begins", "Bob ends"):
        alice.say(str(thread.id), text)
    run_id = thread.stored.create(thread.id, end_user_id=BOB)
    assert ["Ann asks", "to Ann"] == exported(thread)
    assert ["Bob begins", "Bob ends"] == exported(thread, BOB)
    thread.answer(run_id, "to Bob")

    erase(thread)
    erase(thread, BOB)

    assert ["somebody asks"] == kept(thread)


def steer(thread: BusyThread, run_id: UUID, text: str) -> Created:
    """Send a message to the active run, and deliver it as the run's worker does."""
    made = thread.say(text, "steer", end_user_id=ANN)
    assert made.offered is not None
    thread.stored.write(thread.claims[run_id], RunSteered(str(made.offered[0]), text))
    return made


def summarize(thread: BusyThread, upto_position: int) -> None:
    point = {"window_tokens": 0, "upto_position": upto_position, "upto_seq": 0}
    with thread.stored.connections.transaction() as tx:
        tx.sql.execute(
            insert(thread_contexts).values(
                thread_id=thread.id, dropped_messages=1, summary="Ann asked.", **point
            )
        )


def test_a_summary_from_before_an_erasure_does_not_come_back(thread: BusyThread) -> None:
    """A run that was active meanwhile stores none, but where its thread begins for small models.

    One that begins later does.
    """
    thread.answer(thread.say("Ann asks", end_user_id=ANN).run_id, "to Ann")
    claim = thread.claim(thread.say("theirs").run_id)
    of_org = erasures.c.org_id == thread.stored.actor.org_id

    def moved(summary: str | None) -> list[str | None]:
        point = ContextCompacted(window_tokens=8_000, upto_position=2, summary=summary)
        with thread.stored.connections.statement() as tx:
            points.move(tx, claim, point)
        with thread.stored.connections.reading() as sql:
            return [one.summary for one in points.load(sql, thread.id).values()]

    assert ["Ann asked."] == moved("Ann asked.")
    erase(thread)

    assert [] == moved("Ann asked.")
    assert [None] == moved(None)
    with thread.stored.connections.transaction() as tx:
        tx.sql.execute(update(erasures).where(of_org).values(created_at=ago(seconds=120)))
    assert ["They asked."] == moved("They asked.")


def test_a_summary_that_is_stored_during_an_erasure_is_forgotten(thread: BusyThread) -> None:
    """The record has a time by which runs that began before the commit store none later."""
    thread.answer(thread.say("Ann asks", end_user_id=ANN).run_id, "to Ann")
    claim = thread.claim(thread.say("theirs").run_id)
    connections = thread.stored.connections
    point = ContextCompacted(window_tokens=8_000, upto_position=2, summary="Ann asked.")
    with connections.transaction() as tx:
        asked = select(messages.c.id).where(messages.c.content == "Ann asks")
        tx.sql.execute(asked.with_for_update())
        join = beside(connections, lambda: erase(thread))
        with connections.statement() as other:
            points.move(other, claim, point)
        read_at = tx.sql.scalar(select(func.clock_timestamp()))
    join()

    with connections.reading() as sql:
        assert {} == points.load(sql, thread.id)
        of_org = erasures.c.org_id == thread.stored.actor.org_id
        assert sql.scalar(select(erasures.c.created_at).where(of_org)) >= read_at


def test_a_budget_s_delivery_of_a_run_that_ends_during_an_erasure_is_deleted(
    thread: BusyThread,
) -> None:
    """A limit that is reached just before the commit leaves no webhook with the end user's id."""
    thread.answer(thread.say("Ann asks", end_user_id=ANN).run_id, "to Ann")
    connections, org_id = thread.stored.connections, thread.stored.actor.org_id
    scope, of = end_user_scope(ANN), webhook_deliveries.c
    named = select(of.data).where(of.org_id == org_id, of.type == "budget.threshold_reached")
    with connections.transaction() as tx:
        endpoint(tx, org_id)
        limits = {"max_cost_usd": None, "max_cost_usd_per_month": Decimal(1)}
        budget_limits.set_(tx, org_id, scope, **limits)
    with connections.transaction() as tx:
        asked = select(messages.c.id).where(messages.c.content == "Ann asks")
        tx.sql.execute(asked.with_for_update())
        join = beside(connections, lambda: erase(thread))
        with connections.transaction() as other:
            [row] = spending.now(other.sql, org_id, [scope])
            place = spending.place(scope, row.month)
            spending.move(other.sql, org_id, {place: (Decimal(1), Decimal(0))})
        with connections.reading() as sql:
            assert ANN in str(sql.scalars(named).all())
    join()

    with connections.reading() as sql:
        assert [] == sql.scalars(named).all()


@pytest.mark.parametrize("then", ["kept", "retried", "rolled back"])
def test_a_steered_run_is_erased_with_its_question(
    thread: BusyThread, alice: User, then: str
) -> None:
    """What somebody has posted in the meantime is kept; a retry would answer that."""
    others = [] if then == "retried" else ["somebody else asks"]
    made = thread.say("Ann asks", end_user_id=ANN)
    claim = thread.claim(made.run_id)
    steer(thread, made.run_id, "more")
    for content in others:
        alice.say(str(thread.id), content)
    if then == "rolled back":
        thread.say("another way", "rollback")
        assert Outcome.ENDED == thread.end(thread.ending(cancelled, claim))
    else:
        assert Outcome.ENDED == thread.end(thread.ending(completed, claim, "to Ann"))
    if then == "retried":
        with thread.stored.connections.transaction() as tx:
            creation.retry(
                tx, thread.stored.actor, thread.id, thread.stored.catalog(), trace_id="0" * 32
            )
    answers = [] if then == "rolled back" else ["to Ann"]
    assert ["Ann asks", "more", *answers] == exported(thread)
    summarize(thread, 2)

    if then == "retried":
        with pytest.raises(RunsGoOn):
            erase(thread)
        sweep.sweep(thread.stored.connections)
    erase(thread)

    others += ["another way"] if then == "rolled back" else []
    assert others == kept(thread)
    with thread.stored.connections.reading() as sql:
        of_thread = thread_contexts.c.thread_id == thread.id
        assert [] == sql.execute(select(thread_contexts).where(of_thread)).all()


def test_a_message_that_is_offered_to_another_s_run_is_erased(thread: BusyThread) -> None:
    """It becomes no run when that one ends."""
    made = thread.say("theirs")
    thread.claim(made.run_id)
    thread.say("Ann steers", "steer", end_user_id=ANN)
    assert ["Ann steers"] == exported(thread)

    erase(thread)
    ending = thread.ending(completed, thread.claims[made.run_id], "answer")

    assert Outcome.ENDED == thread.end(ending)
    assert ["theirs", "answer"] == kept(thread)
    assert ["completed"] == thread.states()


def test_an_offered_message_becomes_no_run_while_an_erasure_waits_for_others(
    thread: BusyThread,
) -> None:
    """It is deleted first: the end of the run that it is offered to starts none."""
    made = thread.say("theirs")
    thread.claim(made.run_id)
    thread.say("Ann steers", "steer", end_user_id=ANN)
    waiting = BusyThread(thread.stored).say("Ann asks", end_user_id=ANN)

    with pytest.raises(RunsGoOn):
        erase(thread)
    ending = thread.ending(completed, thread.claims[made.run_id], "answer")
    assert Outcome.ENDED == thread.end(ending)
    sweep.sweep(thread.stored.connections)
    erase(thread)

    assert ["theirs", "answer"] == kept(thread)
    assert ["completed"] == thread.states()
    with thread.stored.connections.reading() as sql:
        assert sql.scalar(select(runs.c.id).where(runs.c.id == waiting.run_id)) is None


def test_a_run_that_an_end_makes_of_an_offered_message_is_cancelled(thread: BusyThread) -> None:
    """An erasure that comes at the same moment waits for the end, and finds the run."""
    made = thread.say("theirs")
    thread.claim(made.run_id)
    thread.say("Ann steers", "steer", end_user_id=ANN)

    def try_to_erase() -> None:
        with pytest.raises(RunsGoOn):
            erase(thread)

    with thread.stored.connections.transaction() as tx:
        lock = select(runs.c.position).where(runs.c.id == made.run_id).with_for_update()
        position = tx.sql.execute(lock).scalar_one()
        join = beside(thread.stored.connections, try_to_erase)
        offered_messages.after_end(tx, made.run_id, thread.id, position)
    join()

    assert ["theirs", "Ann steers"] == kept(thread)
    sweep.sweep(thread.stored.connections)
    erase(thread)
    assert ["theirs"] == kept(thread)


def test_a_run_that_is_created_during_an_erasure_ends_before_it_is_erased(
    thread: BusyThread,
) -> None:
    """It is found last, and cancelled; the rest can be erased by the next command."""
    thread.answer(thread.say("Ann asks", end_user_id=ANN).run_id, "to Ann")
    later = thread.say("theirs")
    thread.answer(later.run_id, "answer")
    prompted = update(run_events).where(run_events.c.run_id == later.run_id)
    with thread.stored.connections.transaction() as tx:
        tx.sql.execute(prompted.values(prompts=b"Ann asks"))

    def try_to_erase() -> None:
        with pytest.raises(RunsGoOn):
            erase(thread)

    with thread.stored.connections.transaction() as tx:
        # The erasure has found that all runs have ended, and forgets prompts next.
        tx.sql.execute(select(run_events.c.seq).where(prompted.whereclause).with_for_update())
        join = beside(thread.stored.connections, try_to_erase)
        thread.say("Ann asks again", end_user_id=ANN)
    join()

    assert ["theirs", "answer", "Ann asks again"] == kept(thread)[2:]
    sweep.sweep(thread.stored.connections)
    erase(thread)
    assert ["theirs", "answer"] == kept(thread)


def test_a_run_that_has_taken_another_s_message_leaves_it(thread: BusyThread) -> None:
    """The later one of two people who interrupt a run has a run that begins with both messages."""
    active = thread.say("theirs")
    claim = thread.claim(active.run_id)
    thread.say("Ann interrupts", "interrupt", end_user_id=ANN)
    by_bob = thread.say("Bob, too", "interrupt", end_user_id=BOB)
    assert ["Ann interrupts"] == exported(thread)
    assert ["Bob, too"] == exported(thread, BOB)
    assert Outcome.ENDED == thread.end(thread.ending(cancelled, claim))
    thread.answer(by_bob.run_id, "to Bob")
    assert ["Ann interrupts"] == exported(thread)
    assert ["Bob, too", "to Bob"] == exported(thread, BOB)

    erase(thread)

    assert ["theirs", "Bob, too", "to Bob"] == kept(thread)


@pytest.mark.parametrize("on_busy", ["enqueue", "steer"])
def test_the_thread_of_a_sub_run_stays_that_of_its_end_user(
    thread: BusyThread, on_busy: str
) -> None:
    """The server may send something for another one there, or a remark that the sub-run does not
    take: that person has this run alone.
    """
    parent = thread.claim(thread.say("Bob asks", end_user_id=BOB).run_id)
    child = delegated(thread.stored, parent)
    below = BusyThread(thread.stored, child.thread_id)
    claim = below.claim(child.run_id)
    below.say("Ann asks", on_busy, end_user_id=ANN)
    assert Outcome.ENDED == below.end(below.ending(completed, claim, "Bob's result"))
    with below.stored.connections.reading() as sql:
        of_ann = select(runs.c.id).where(runs.c.thread_id == below.id, runs.c.end_user_id == ANN)
        below.answer(sql.execute(of_ann).scalar_one(), "to Ann")
    assert ["Ann asks", "to Ann"] == exported(thread)

    erase(thread)

    assert ["Do it.", "Bob's result"] == kept(below)
    assert ["Do it.", "Bob's result", "Bob asks"] == exported(thread, BOB)


def test_a_sub_run_is_not_cancelled_with_what_waits_for_its_thread(thread: BusyThread) -> None:
    """It is another end user's."""
    parent = thread.claim(thread.say("Bob asks", end_user_id=BOB).run_id)
    child = delegated(thread.stored, parent)
    below = BusyThread(thread.stored, child.thread_id)
    claim = below.claim(child.run_id)
    below.say("Ann waits", end_user_id=ANN)

    with pytest.raises(RunsGoOn):
        erase(thread)
    sweep.sweep(thread.stored.connections)
    erase(thread)

    assert Outcome.ENDED == below.end(below.ending(completed, claim, "Bob's result"))
    assert ["Do it.", "Bob's result"] == kept(below)
