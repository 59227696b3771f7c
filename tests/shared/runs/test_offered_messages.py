"""Messages that are offered to an active run."""

import pytest

from arkloop.shared.errors import LeaseLost, NotActive
from arkloop.shared.events.types import ContextCompacted, RunSteered
from arkloop.shared.runs import next_runs, offered_messages
from arkloop.shared.runs.creation import Created
from arkloop.shared.runs.endings import Outcome
from arkloop.shared.threads import thread_contexts
from arkloop.worker.process import history
from tests.shared.runs.busy_thread import BusyThread
from tests.shared.runs.test_endings import cancelled, completed
from tests.stored_runs import StoredRuns


@pytest.fixture
def thread(stored: StoredRuns) -> BusyThread:
    return BusyThread(stored)


def deliver(thread: BusyThread, made: Created, text: str) -> None:
    """Write the event that makes a message part of its run, as the run's worker does."""
    assert made.offered is not None
    event = RunSteered(str(made.offered[0]), text)
    thread.stored.write(thread.claims[made.run_id], event)


def test_a_message_that_was_delivered_is_part_of_the_run(thread: BusyThread) -> None:
    """It stands before the answer, and has no run of its own."""
    first = thread.say("a")
    claim = thread.claim(first.run_id)
    made = [thread.say(text, "steer") for text in ("b", "c")]
    thread.say("d")
    for one, text in zip(made, ("b", "c"), strict=True):
        deliver(thread, one, text)
    ids = [one.offered[0] for one in made if one.offered]
    with thread.stored.connections.transaction() as tx:
        offered_messages.settle(tx, claim, ids)

    assert {first.run_id} == {one.run_id for one in made}
    assert Outcome.ENDED == thread.end(thread.ending(completed, claim, "ABC"))
    assert ["a", "b", "c", "ABC", "d"] == thread.texts()
    assert ["completed", "queued"] == thread.states()
    assert not thread.stored.row(first.run_id)["has_offered"]


def test_a_message_that_was_sent_meanwhile_is_left_to_the_next_run(thread: BusyThread) -> None:
    """It is no part of the run that was steered, so that it stands behind that run's answer."""
    first = thread.say("a")
    claim = thread.claim(first.run_id)
    for text in ("b", "c"):
        deliver(thread, thread.say(text, "steer"), text)
        thread.send(f"meanwhile {text}")
    cut = ContextCompacted(window_tokens=100, upto_position=claim.position)
    with thread.stored.connections.transaction() as tx:
        thread_contexts.move(tx, claim, cut)
    waiting = thread.say("d")

    assert Outcome.ENDED == thread.end(thread.ending(completed, claim, "ABC"))

    sent = ["meanwhile b", "meanwhile c"]
    assert ["a", "b", "c", "ABC", *sent, "d"] == thread.texts()
    next_ = thread.claim(waiting.run_id)
    with thread.stored.connections.reading() as sql:
        [opening] = history.load_openings(sql, [next_])
        seen = history.load(sql, next_, opening, history.MAX_BYTES, [100])
        place = next_runs.Place(thread.id, thread.stored.row(first.run_id)["position"])
        found = next_runs.after(sql, [place])[place]
    assert ["b", "c", *sent, "d"] == [message.content for message in seen.messages]
    assert (waiting.run_id, [*sent, "d"]) == (found.row.id, [row.content for row in found.messages])


def test_a_message_that_no_step_took_becomes_a_run(thread: BusyThread) -> None:
    """Runs keep the order in which messages were accepted, and the ids that requests got."""
    first = thread.say("a")
    claim = thread.claim(first.run_id)
    second, third, fourth = thread.say("b"), thread.say("c", "steer"), thread.say("d")
    assert third.offered is not None

    assert Outcome.ENDED == thread.end(thread.ending(completed, claim, "A"))
    for run_id, said in ((second.run_id, "B"), (third.offered[1], "C"), (fourth.run_id, "D")):
        thread.answer(run_id, said)

    assert ["a", "A", "b", "B", "c", "C", "d", "D"] == thread.texts()


def test_a_delivery_that_its_worker_could_not_settle_counts(thread: BusyThread) -> None:
    """The event decides: the end of the run settles it, and makes no run of the message."""
    claim = thread.claim(thread.say("a").run_id)
    delivered, other = thread.say("b", "steer"), thread.say("c", "steer")
    deliver(thread, delivered, "b")

    assert Outcome.ENDED == thread.end(thread.ending(cancelled, claim))

    assert ["cancelled", "queued"] == thread.states()
    assert other.offered is not None
    thread.answer(other.offered[1], "C")
    assert ["a", "b", "c", "C"] == thread.texts()


def test_only_the_holder_of_a_run_settles_a_message(thread: BusyThread) -> None:
    """An outdated claim changes nothing."""
    first = thread.say("a")
    claim = thread.claim(first.run_id)
    made = thread.say("b", "steer")
    thread.stored.set(first.run_id, fence=claim.fence + 1)
    assert made.offered is not None

    with pytest.raises(LeaseLost), thread.stored.connections.transaction() as tx:
        offered_messages.settle(tx, claim, [made.offered[0]])
    with thread.stored.connections.reading() as sql:
        [row] = offered_messages.find(sql, first.run_id)
    assert "b" == row.content


def test_a_run_that_waits_for_input_takes_no_message(thread: BusyThread) -> None:
    """The client learns that it has to answer, or to interrupt."""
    first = thread.say("a")
    thread.stored.park(thread.claim(first.run_id), first.run_id)

    with pytest.raises(NotActive):
        thread.say("b", "steer")
    assert ["a"] == thread.texts()


@pytest.mark.parametrize("is_settled", [False, True])
def test_a_rollback_keeps_what_people_have_said(thread: BusyThread, is_settled: bool) -> None:
    """The messages that the run was steered with are those of the thread again, in their place."""
    first = thread.say("a")
    claim = thread.claim(first.run_id)
    made = thread.say("b", "steer")
    assert made.offered is not None
    deliver(thread, made, "b")
    if is_settled:
        with thread.stored.connections.transaction() as tx:
            offered_messages.settle(tx, claim, [made.offered[0]])
    last = thread.say("c", "rollback")

    assert Outcome.ENDED == thread.end(thread.ending(cancelled, claim))
    thread.answer(last.run_id, "C")

    assert ["a", "b", "c", "C"] == thread.texts()
    assert [] == thread.steered()
    assert [] == thread.waiting()
