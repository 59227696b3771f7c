"""Requests for a run in a thread whose run is active: what each `on_busy` does."""

from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy import select, update

from arkloop.shared.actors import PERMISSIONS_OF_ROLE
from arkloop.shared.errors import Forbidden, QueueFull, ThreadBusy
from arkloop.shared.events import event_log
from arkloop.shared.ids import new_id
from arkloop.shared.runs import creation
from arkloop.shared.runs.endings import Outcome
from arkloop.shared.runs.thread_queue import MAX_WAITING
from arkloop.shared.storage.signals import canceller_of
from arkloop.shared.storage.tables.threads import messages, threads
from tests.clients import Register, User
from tests.shared.runs.busy_thread import LATER, BusyThread
from tests.shared.runs.test_endings import cancelled, completed
from tests.shared.runs.test_queries import actor_of
from tests.stored_runs import StoredRuns
from tests.waiting import in_parallel


@pytest.fixture
def thread(stored: StoredRuns) -> BusyThread:
    return BusyThread(stored)


def superseded_by(thread: BusyThread, run_id: UUID) -> str | None:
    """Return what the run's last event names as its successor."""
    last = thread.stored.events(run_id)[-1]
    assert "run.cancelled" == last.type
    successor: str | None = event_log.data_of(last.payload).get("superseded_by")
    return successor


def test_a_request_without_a_value_is_refused(thread: BusyThread) -> None:
    """The default is 409, and nothing is stored."""
    first = thread.say("a", None)

    with pytest.raises(ThreadBusy) as busy:
        thread.say("b", None)

    assert {"active_run_id": str(first.run_id)} == busy.value.details
    assert (["queued"], ["a"]) == (thread.states(), thread.texts())


def test_a_thread_has_a_default(thread: BusyThread) -> None:
    """It applies to requests without a value; others have their own."""
    with thread.stored.connections.transaction() as tx:
        tx.sql.execute(update(threads).where(threads.c.id == thread.id).values(on_busy="enqueue"))
    thread.say("a", None)

    assert 1 == thread.say("b", None).position
    with pytest.raises(ThreadBusy):
        thread.say("c", "reject")


def test_a_queue_has_an_end(thread: BusyThread) -> None:
    """50 runs wait; one more is refused, until one of them is gone."""
    thread.say("a")
    waiting = [thread.say(str(number)) for number in range(MAX_WAITING)]

    for on_busy in ("enqueue", "interrupt"):
        with pytest.raises(QueueFull):
            thread.say("b", on_busy)
    thread.stored.cancel(waiting[7].run_id)

    assert MAX_WAITING == thread.say("c").position


def test_a_burst_of_messages_is_merged_into_one_run(thread: BusyThread) -> None:
    """Messages that are sent while the thread is busy have one answer together."""
    first = thread.say("a", "merge")
    second = thread.say("b", "merge", metadata={"tab": "1", "by": "me"})
    third = thread.say("c", "merge", metadata={"tab": "2"})

    assert (second.run_id, second.trace_id, 1) == (third.run_id, third.trace_id, third.position)
    assert {"tab": "2", "by": "me"} == thread.stored.row(second.run_id)["metadata"]
    thread.answer(first.run_id, "A")
    thread.answer(second.run_id, "BC")
    assert ["a", "A", "b", "c", "BC"] == thread.texts()


def test_a_run_takes_no_message_for_which_it_was_not_made(thread: BusyThread) -> None:
    """A message with other settings, or of another end user, has a run of its own."""
    thread.say("a", "merge")
    made = [
        thread.say("b", "merge"),
        thread.say("c", "merge", options={"instructions": "Be brief."}),
        thread.say("d", "merge", end_user_id="somebody"),
    ]

    assert 3 == len({one.run_id for one in made})


def test_an_interrupt_goes_ahead(thread: BusyThread) -> None:
    """The active run is cancelled and keeps its text; the new one is next, before what waits."""
    first, second = thread.say("a"), thread.say("b")
    claim = thread.claim(first.run_id)
    third = thread.say("c", "interrupt")

    assert thread.stored.row(first.run_id)["cancel_requested_at"] is not None
    assert ["executing", "pending", "pending"] == thread.states()
    assert Outcome.CANCELLED == thread.end(completed(claim, "A"))
    assert Outcome.ENDED == thread.end(cancelled(claim))

    assert ["cancelled", "pending", "queued"] == thread.states()
    assert third.run_id == thread.stored.row(first.run_id)["superseded_by"]
    thread.answer(third.run_id, "C")
    thread.answer(second.run_id, "B")
    assert ["a", "c", "C", "b", "B"] == thread.texts()


def test_an_interrupt_sends_its_worker_to_the_row(thread: BusyThread) -> None:
    """The signal does not say which run takes the place, so it is not that of a plain cancel."""
    first = thread.say("a")
    thread.stored.held(first.run_id)
    thread.say("b", "interrupt")

    redis, keys = thread.stored.connections.redis, thread.stored.connections.keys
    kept = redis.get(keys.cancel(first.run_id))
    assert (True, None) == (str(thread.stored.actor.user_id) in kept, canceller_of(kept))


def test_an_interrupted_run_without_a_worker_ends_at_once(thread: BusyThread) -> None:
    """A run that is queued, or waits for a person, makes room in the request itself."""
    for park in (False, True):
        first = thread.say("a")
        if park:
            thread.stored.park(thread.claim(first.run_id), first.run_id)
        second = thread.say("b", "interrupt")

        assert None is second.position
        assert "cancelled" == thread.stored.state(first.run_id)
        assert str(second.run_id) == superseded_by(thread, first.run_id)
        thread.answer(second.run_id, "B")


def test_an_interrupt_supersedes_one_that_has_not_started(thread: BusyThread) -> None:
    """It takes the message along: as if the first interrupt had come a moment earlier."""
    first = thread.say("a")
    claim = thread.claim(first.run_id)
    second, third = thread.say("b", "interrupt"), thread.say("c", "interrupt")
    fourth = thread.say("d", "rollback")

    assert ["executing", "cancelled", "cancelled", "pending"] == thread.states()
    assert str(third.run_id) == superseded_by(thread, second.run_id)
    assert str(fourth.run_id) == superseded_by(thread, third.run_id)
    assert Outcome.ENDED == thread.end(cancelled(claim))
    thread.answer(fourth.run_id, "BCD")
    assert ["a", "b", "c", "d", "BCD"] == thread.texts()


def test_a_rollback_removes_the_output(thread: BusyThread) -> None:
    """Neither the text of the interrupted run nor its turns are part of the thread."""
    first = thread.say("a")
    claim = thread.claim(first.run_id)
    second = thread.say("b", "rollback")

    assert Outcome.ENDED == thread.end(replace(cancelled(claim), message=(new_id(), "part")))

    assert thread.stored.row(first.run_id)["superseded_at"] is not None
    assert [("part", True)] == thread.stored.messages(first.run_id)
    thread.answer(second.run_id, "B")
    assert ["a", "b", "B"] == thread.texts()


def test_an_interrupt_needs_the_right_to_cancel(thread: BusyThread) -> None:
    """Nothing is stored for somebody who may not write the active run."""
    first = thread.say("a")
    member = replace(
        thread.stored.actor,
        user_id=new_id(),
        role="member",
        permissions=PERMISSIONS_OF_ROLE["member"],
    )
    with pytest.raises(Forbidden):
        thread.say("b", "interrupt", actor=member)
    assert "queued" == thread.stored.state(first.run_id)


@pytest.mark.parametrize("on_busy", ["interrupt", "rollback"])
def test_another_interrupt_needs_the_right_to_cancel_the_next_run(
    stored: StoredRuns, on_busy: str, register: Register, alice: User
) -> None:
    """In a member's thread an admin's run executes, or only is the one to be next."""
    member = actor_of(register(org_of=alice, role="member"), "member")
    for first_of in (stored.actor, member):
        thread = BusyThread(replace(stored, actor=member))
        first = thread.say("a", actor=first_of)
        thread.claim(first.run_id)
        second = thread.say("b", "interrupt", actor=stored.actor)

        with pytest.raises(Forbidden):
            thread.say("c", on_busy)

        assert (["executing", "pending"], ["a", "b"]) == (thread.states(), thread.texts())
        assert second.run_id == stored.row(first.run_id)["superseded_by"]
        third = thread.say("c", on_busy, actor=stored.actor)
        assert str(third.run_id) == superseded_by(thread, second.run_id)


def test_requests_of_one_moment_are_all_accepted(thread: BusyThread) -> None:
    """Each of 16 has its run; one is active, and the places of the others are 1 to 15."""
    made = in_parallel(16, lambda number: thread.say(str(number)))

    assert sorted(thread.states()) == ["pending"] * 15 + ["queued"]
    assert 16 == len({one.run_id for one in made})
    waiting = sorted(one.position for one in made if one.position is not None)
    assert list(range(1, 16)) == waiting


def test_a_retry_ignores_what_is_scheduled(thread: BusyThread) -> None:
    """The last round is that of the conversation, not a message for later."""
    first = thread.say("a")
    thread.answer(first.run_id, "A")
    thread.say("b", not_before=LATER)

    with thread.stored.connections.transaction() as tx:
        catalog = thread.stored.catalog()
        made = creation.retry(tx, thread.stored.actor, thread.id, catalog, trace_id="3" * 32)

    thread.answer(made.run_id, "A again")
    assert ["a", "A again", "b"] == thread.texts()
    with thread.stored.connections.reading() as sql:
        query = select(messages.c.content).where(messages.c.superseded_at.is_not(None))
        assert ["A"] == list(sql.scalars(query.where(messages.c.thread_id == thread.id)))
