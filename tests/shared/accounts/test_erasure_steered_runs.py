"""The export and the erasure of what an end user has said to steer the run of another one."""

from contextlib import suppress
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event, func, select, update

from arkloop.shared.accounts import erasure
from arkloop.shared.accounts.erasure import RunsGoOn
from arkloop.shared.claim import Claim
from arkloop.shared.errors import Unavailable
from arkloop.shared.events.types import ContextCompacted, RunSteered
from arkloop.shared.runs import creation, offered_messages, personal_data, sweep
from arkloop.shared.runs.endings import Outcome
from arkloop.shared.storage.tables.accounts import erasures
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import runs
from arkloop.shared.storage.tables.threads import messages, threads
from arkloop.shared.threads import thread_contexts
from tests.clients import Register
from tests.end_users import ANN, BOB
from tests.shared.accounts.test_erasure_shared_threads import erase, exported, kept
from tests.shared.accounts.test_erasure_shared_threads import thread as thread  # a fixture
from tests.shared.runs.busy_thread import LATER, BusyThread
from tests.shared.runs.test_endings import cancelled, completed

ENDINGS = pytest.mark.parametrize("then", ["kept", "retried", "rolled back"])


def steer(thread: BusyThread, run_id: UUID, text: str, end_user_id: str | None) -> UUID:
    """Send a message to the active run, and deliver it; returns its id."""
    offered = thread.say(text, "steer", end_user_id=end_user_id).offered
    assert offered is not None
    part = {"type": "text", "text": text}
    thread.stored.write(thread.claims[run_id], RunSteered(str(offered[0]), text, [part]))
    return offered[0]


def settle(thread: BusyThread, run_id: UUID, message_id: UUID) -> None:
    with thread.stored.connections.transaction() as tx:
        offered_messages.settle(tx, thread.claims[run_id], [message_id])


def steered(thread: BusyThread, then: str) -> UUID:
    """Return a run of Bob's with a remark of Ann's, and perhaps one of another's after it."""
    run_id = thread.say("Bob asks", end_user_id=BOB).run_id
    thread.claim(run_id)
    steer(thread, run_id, "Ann remarks", ANN)
    finish(thread, run_id, then)
    return run_id


def finish(thread: BusyThread, run_id: UUID, then: str) -> None:
    """End a run that is kept, retried or rolled back."""
    stored, claim = thread.stored, thread.claims[run_id]
    if then == "rolled back":
        thread.say("another way", "rollback", end_user_id="carl")
        assert Outcome.ENDED == thread.end(thread.ending(cancelled, claim))
        return
    assert Outcome.ENDED == thread.end(thread.ending(completed, claim, "to both"))
    if then == "retried":
        with stored.connections.transaction() as tx:
            creation.retry(tx, stored.actor, thread.id, stored.catalog(), trace_id="0" * 32)


def events_of(thread: BusyThread, run_id: UUID) -> str:
    with thread.stored.connections.reading() as sql:
        of_run = select(run_events.c.payload).where(run_events.c.run_id == run_id)
        return "\n".join(sql.scalars(of_run.order_by(run_events.c.seq)))


def sum_up(thread: BusyThread, claim: Claim, upto: int, summary: str, tokens: int = 8_000) -> None:
    """Let a run sum its thread up, for models with a context of this size."""
    point = ContextCompacted(window_tokens=tokens, upto_position=upto, summary=summary)
    thread.stored.write(claim, point)
    with thread.stored.connections.statement() as tx:
        thread_contexts.move(tx, claim, point)


def summaries(thread: BusyThread) -> list[str | None]:
    with thread.stored.connections.reading() as sql:
        return [point.summary for point in thread_contexts.load(sql, thread.id).values()]


@ENDINGS
def test_a_remark_belongs_to_who_has_made_it(thread: BusyThread, then: str) -> None:
    """The server that sends all of it is the same user."""
    steered(thread, then)
    answers = [] if then == "rolled back" else ["to both"]

    assert ["Ann remarks"] == exported(thread)
    assert ["Bob asks", *answers] == exported(thread, BOB)


@ENDINGS
def test_a_remark_stays_when_its_run_is_erased(thread: BusyThread, then: str) -> None:
    """It can be exported and erased later."""
    steered(thread, then)
    if then == "retried":
        with pytest.raises(RunsGoOn):
            erase(thread, BOB)
        sweep.sweep(thread.stored.connections)
    erase(thread, BOB)

    others = ["another way"] if then == "rolled back" else []
    assert ["Ann remarks", *others] == kept(thread)
    assert ["Ann remarks"] == exported(thread)
    erase(thread)
    assert others == kept(thread)


@ENDINGS
def test_a_remark_is_erased_in_the_run_of_another(thread: BusyThread, then: str) -> None:
    """Its empty place stays, by which the question of that run is found."""
    run_id = steered(thread, then)
    before = kept(thread)
    assert '"content":"Ann remarks","parts":[' in events_of(thread, run_id)
    of_bob = exported(thread, BOB)

    erase(thread)

    assert [text.replace("Ann remarks", "[erased]") for text in before] == kept(thread)
    assert "Ann remarks" not in events_of(thread, run_id)
    assert '"content":"[erased]"}' in events_of(thread, run_id)
    assert [] == exported(thread)
    assert of_bob == [text for text in exported(thread, BOB) if text != "[erased]"]


def test_a_remark_is_erased_in_an_active_run(thread: BusyThread) -> None:
    """The end of the run gives its message a place, as it does others."""
    run_id = thread.say("Bob asks", end_user_id=BOB).run_id
    claim = thread.claim(run_id)
    settle(thread, run_id, steer(thread, run_id, "Ann remarks", ANN))
    steer(thread, run_id, "Bob adds", BOB)

    erase(thread)

    assert "Ann remarks" not in events_of(thread, run_id)
    assert Outcome.ENDED == thread.end(thread.ending(completed, claim, "to both"))
    assert ["Bob asks", "[erased]", "Bob adds", "to both"] == kept(thread)
    assert ["completed"] == thread.states()


@pytest.mark.parametrize("has_ended", [True, False], ids=["ended", "active"])
@pytest.mark.parametrize("is_taken", [True, False], ids=["taken", "offered"])
def test_what_may_repeat_a_remark_is_forgotten(
    thread: BusyThread, is_taken: bool, has_ended: bool
) -> None:
    """The run that the remark has steered has read it, and so may its sub-runs have; what was said
    before that run is still summed up. A last call reads it without taking it if it has no answer.
    What waits behind it for later is not the run of the remark.
    """
    connections = thread.stored.connections
    run_id = thread.say("Bob asks", end_user_id=BOB).run_id
    claim = thread.claim(run_id)
    if is_taken:
        settle(thread, run_id, steer(thread, run_id, "Ann remarks", ANN))
    else:
        thread.say("Bob adds", "steer", end_user_id=BOB)
        thread.say("Ann remarks", "steer", end_user_id=ANN)
    thread.say("Carl's reminder", end_user_id="carl", not_before=LATER)
    below = BusyThread(thread.stored)
    of_sub_run = below.claim(below.say("a task", end_user_id=BOB).run_id)
    of_run = run_events.c.run_id == run_id
    with connections.transaction() as tx:
        position = tx.sql.execute(select(runs.c.position).where(runs.c.id == run_id)).scalar_one()
        is_child = update(runs).where(runs.c.id == of_sub_run.run_id)
        tx.sql.execute(is_child.values(parent_run_id=run_id))
        tx.sql.execute(update(run_events).where(of_run).values(prompts=b"Ann remarks"))
    sum_up(thread, claim, position - 1, "Before Bob.", 4_000)
    sum_up(thread, claim, position, "Ann remarks.")
    sum_up(below, of_sub_run, 1, "Ann remarks.")
    ending = thread.ending(completed, claim, "an answer")
    if has_ended:
        assert Outcome.ENDED == thread.end(ending)
        while next_ := thread.active():
            thread.answer(next_, "an answer")

    erase(thread)

    if not has_ended:
        assert Outcome.ENDED == thread.end(ending)
    assert (["Before Bob."], []) == (summaries(thread), summaries(below))
    assert "Before Bob." in events_of(thread, run_id)
    assert "Ann remarks" not in events_of(thread, run_id) + events_of(thread, of_sub_run.run_id)
    with connections.reading() as sql:
        assert {None} == {*sql.scalars(select(run_events.c.prompts).where(of_run))}


@ENDINGS
@pytest.mark.parametrize("first", [ANN, BOB])
def test_a_summary_of_several_remarks_is_forgotten(
    thread: BusyThread, first: str, then: str
) -> None:
    """All count from the place that their run had while it was active, which the first one gets."""
    run_id = thread.say("Bob asks", end_user_id=BOB).run_id
    claim = thread.claim(run_id)
    position = thread.stored.row(run_id)["position"]
    for end_user_id in (first, BOB if first == ANN else ANN):
        text = "Ann remarks" if end_user_id == ANN else "Bob adds"
        settle(thread, run_id, steer(thread, run_id, text, end_user_id))
    sum_up(thread, claim, position - 1, "Before Bob.", 4_000)
    sum_up(thread, claim, position, "Ann remarks.")
    finish(thread, run_id, then)

    erase(thread)

    assert "Before Bob." in events_of(thread, run_id)
    assert "Ann remarks" not in events_of(thread, run_id)
    assert "Ann remarks." not in summaries(thread)


def test_a_remark_that_is_delivered_and_not_settled_is_erased(thread: BusyThread) -> None:
    """It has no place yet: nothing of it stays but the event."""
    run_id = thread.say("Bob asks", end_user_id=BOB).run_id
    claim = thread.claim(run_id)
    steer(thread, run_id, "Ann remarks", ANN)

    erase(thread)

    assert "Ann remarks" not in events_of(thread, run_id)
    assert Outcome.ENDED == thread.end(thread.ending(completed, claim, "to Bob"))
    assert ["Bob asks", "to Bob"] == kept(thread)
    assert [] == thread.waiting()


def test_a_remark_is_erased_while_its_run_ends(thread: BusyThread) -> None:
    """The end settles the message after the erasure has found its thread."""
    run_id = thread.say("Bob asks", end_user_id=BOB).run_id
    claim = thread.claim(run_id)
    message_id = steer(thread, run_id, "Ann remarks", ANN)
    ending = thread.ending(completed, claim, "to both")
    connections = thread.stored.connections
    outcomes: list[Outcome] = []

    def end(*details: Any) -> None:
        if "runs.superseded_at IS NOT NULL" in details[2] and not outcomes:
            outcomes.append(thread.end(ending))

    with connections.transaction() as tx:
        event.listen(connections.engine, "before_cursor_execute", end)
        try:
            personal_data.delete_messages(tx, [message_id])
        finally:
            event.remove(connections.engine, "before_cursor_execute", end)

    assert [Outcome.ENDED] == outcomes
    assert "Ann remarks" not in events_of(thread, run_id)
    assert ["Bob asks", "[erased]", "to both"] == kept(thread)


@pytest.mark.parametrize("is_same", [True, False], ids=["same", "other"])
def test_a_remark_of_no_end_user_belongs_to_a_run_of_its_creator(
    thread: BusyThread, register: Register, is_same: bool
) -> None:
    """The row of one that a release before has settled says nothing of end users, either."""
    run_id = thread.say("Ann asks", end_user_id=ANN).run_id
    claim = thread.claim(run_id)
    message_id = steer(thread, run_id, "a remark", None)
    settle(thread, run_id, message_id)
    if not is_same:
        other = register("carl", role="admin")
        by_other = update(messages).where(messages.c.id == message_id)
        with thread.stored.connections.transaction() as tx:
            tx.sql.execute(by_other.values(created_by_user_id=other.id))
    assert Outcome.ENDED == thread.end(thread.ending(completed, claim, "to Ann"))
    remark = ["a remark"]
    assert ["Ann asks", *(remark if is_same else []), "to Ann"] == exported(thread)

    erase(thread)

    assert ([] if is_same else remark) == kept(thread)


@pytest.mark.parametrize("is_taken", [True, False], ids=["taken", "offered"])
def test_an_erasure_that_is_repeated_finds_the_summary_of_a_remark(
    thread: BusyThread, monkeypatch: pytest.MonkeyPatch, is_taken: bool
) -> None:
    """The summary goes before what leads to it, whether it is a message or its offer."""
    run_id = thread.say("Bob asks", end_user_id=BOB).run_id
    claim = thread.claim(run_id)
    position = thread.stored.row(run_id)["position"]
    if is_taken:
        settle(thread, run_id, steer(thread, run_id, "Ann remarks", ANN))
    else:
        thread.say("Ann remarks", "steer", end_user_id=ANN)
    sum_up(thread, claim, position, "Ann remarks.")

    def fail(*_: Any) -> None:
        raise Unavailable

    with monkeypatch.context() as broken, pytest.raises(Unavailable):
        broken.setattr(personal_data, "forget_summaries", fail)
        erase(thread)
    assert ["Ann remarks."] == summaries(thread)

    erase(thread)

    assert [] == summaries(thread)


def test_a_run_stores_no_summary_of_a_remark_that_was_taken_back(
    thread: BusyThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have read the remark before. An erasure has one record in the end."""
    run_id = thread.say("Bob asks", end_user_id=BOB).run_id
    claim = thread.claim(run_id)
    position = thread.stored.row(run_id)["position"]
    thread.say("Ann remarks", "steer", end_user_id=ANN)
    next_step = erasure._erase_threads

    def erase_threads(*args: Any) -> None:
        sum_up(thread, claim, position, "Ann remarks.")
        next_step(*args)

    monkeypatch.setattr(erasure, "_erase_threads", erase_threads)

    erase(thread)

    assert [] == summaries(thread)
    of_org = select(erasures.c.messages).where(erasures.c.org_id == thread.stored.actor.org_id)
    with thread.stored.connections.reading() as sql:
        assert [1] == sql.scalars(of_org).all()


@pytest.mark.parametrize("is_due", [True, False], ids=["due", "waits"])
def test_what_was_sent_for_later_counts_from_where_it_starts(
    thread: BusyThread, is_due: bool
) -> None:
    """No run that was active before that was offered it; a remark to it counts from it, too."""
    connections = thread.stored.connections
    for_later = thread.say("Ann's reminder", end_user_id=ANN, not_before=LATER).run_id
    others = [thread.say("Bob asks", end_user_id=BOB).run_id]
    claim = thread.claim(others[0])
    sum_up(thread, claim, thread.stored.row(others[0])["position"], "Bob asks.")
    assert Outcome.ENDED == thread.end(thread.ending(completed, claim, "to Bob"))
    if is_due:
        at = update(runs).where(runs.c.id == for_later).values(not_before=func.clock_timestamp())
        with connections.transaction() as tx:
            tx.sql.execute(at)
        sweep.sweep(connections)
        thread.claim(for_later)
        settle(thread, for_later, steer(thread, for_later, "Ann remarks", ANN))
        ending = thread.ending(completed, thread.claims[for_later], "to Ann")
        assert Outcome.ENDED == thread.end(ending)
        others.append(thread.say("Bob adds", end_user_id=BOB).run_id)
        thread.answer(others[1], "to Bob")
    with connections.transaction() as tx:
        of_runs = run_events.c.run_id.in_(others)
        tx.sql.execute(update(run_events).where(of_runs).values(prompts=b"a prompt"))
    with suppress(RunsGoOn):
        erase(thread)
    sweep.sweep(connections)

    erase(thread)

    assert ["Bob asks."] == summaries(thread)
    assert "Bob asks." in events_of(thread, others[0])
    with connections.reading() as sql:
        prompted = select(run_events.c.run_id).where(of_runs, run_events.c.prompts.is_not(None))
        assert {others[0]} == {*sql.scalars(prompted)}


def test_a_remark_in_an_own_thread_is_exported_once(thread: BusyThread) -> None:
    """The export has it with the thread, also while it waits for the run's next step."""
    of_thread = update(threads).where(threads.c.id == thread.id)
    with thread.stored.connections.transaction() as tx:
        tx.sql.execute(of_thread.values(end_user_id=ANN))
    run_id = thread.say("Ann asks", end_user_id=ANN).run_id
    thread.claim(run_id)
    settle(thread, run_id, steer(thread, run_id, "Ann remarks", ANN))
    thread.say("Ann adds", "steer", end_user_id=ANN)

    assert ["Ann asks", "Ann remarks", "Ann adds"] == exported(thread)
