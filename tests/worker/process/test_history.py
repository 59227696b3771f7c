"""The history that a run's model has seen before, as it is in the database."""

import threading
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import pytest

from arkloop.shared.claim import QUESTION_BYTES, Claim
from arkloop.shared.events import types
from arkloop.shared.events.types import ContextCompacted
from arkloop.shared.events.usage import Usage
from arkloop.shared.ids import new_id
from arkloop.shared.threads import thread_contexts, threads
from arkloop.shared.threads.content import Content
from arkloop.worker.agent.conversation import History
from arkloop.worker.contract.cpu_slices import cpu_slice
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Message,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from arkloop.worker.process import history
from arkloop.worker.process.history_loader import of_first_run
from tests.stored_runs import StoredRuns


def said(stored: StoredRuns, thread_id: UUID, content: str | Content) -> None:
    with stored.connections.transaction() as tx:
        threads.add_message(tx, stored.actor, thread_id, content=content)


def claimed(stored: StoredRuns, thread_id: UUID) -> Claim:
    return stored.held(stored.create(thread_id))


def round_of(stored: StoredRuns, thread_id: UUID, number: int, output: str = "out") -> None:
    """Store a person's message, a run with a tool call, and its answer."""
    said(stored, thread_id, f"question {number}")
    claim = claimed(stored, thread_id)
    call = f"call_{number}"
    stored.write(
        claim,
        types.MessageCompleted("m1", "let me see", Usage()),
        types.ToolCallRequested(call, "t", {"x": number}),
        types.ToolResult(call, "t", output, False, 1),
        types.MessageCompleted("m2", f"answer {number}", Usage()),
    )
    stored.finish(claim, message=(new_id(), f"answer {number}"))


def turns(number: int, output: str = "out") -> list[Message]:
    call = ToolCall(f"call_{number}", "t", {"x": number})
    return [
        UserMessage(f"question {number}"),
        AssistantMessage("let me see", (call,)),
        ToolMessage(call.id, "t", output),
        AssistantMessage(f"answer {number}"),
    ]


def loaded(
    stored: StoredRuns,
    thread_id: UUID,
    max_bytes: int = history.MAX_BYTES,
    windows: Iterable[int] = (0,),
) -> History:
    claim = claimed(stored, thread_id)
    with stored.connections.reading() as sql:
        [opening] = history.load_openings(sql, [claim])
        found = opening.history(claim) or history.load(sql, claim, opening, max_bytes, windows)
    stored.finish(claim)
    return found


def test_the_turns_of_a_few_runs_are_read_in_turn(stored: StoredRuns) -> None:
    """A single run can have megabytes of results, so that even one waits until another history's
    part is read.
    """
    thread_id = stored.thread()
    round_of(stored, thread_id, 1)
    found: list[History] = []
    reading = threading.Thread(target=lambda: found.append(loaded(stored, thread_id)))
    with cpu_slice():
        reading.start()
        reading.join(0.5)
        was_waiting = reading.is_alive()
    reading.join(60)

    assert was_waiting
    assert turns(1) == found[0].messages


def test_tool_turns_of_earlier_runs_are_part_of_it(stored: StoredRuns) -> None:
    """Tool turns of earlier runs are in the history, in the order of the thread."""
    thread_id = stored.thread()
    round_of(stored, thread_id, 1)
    round_of(stored, thread_id, 2)
    said(stored, thread_id, "now")

    found = loaded(stored, thread_id)

    assert [*turns(1), *turns(2), UserMessage("now")] == found.messages
    assert 0 == found.unread


def test_reading_begins_at_the_truncation_point(stored: StoredRuns, monkeypatch: Any) -> None:
    """A run that is read from its middle keeps its question, and its later turns."""
    thread_id = stored.thread()
    for number in (1, 2, 3):
        round_of(stored, thread_id, number)
    said(stored, thread_id, "now")
    whole = loaded(stored, thread_id)
    claim = claimed(stored, thread_id)
    last_turn = whole.entries[5]
    for window, upto in ((8_000, (last_turn.position, last_turn.seq - 1)), (64_000, (3, 0))):
        point = ContextCompacted(
            window_tokens=window,
            upto_position=upto[0],
            upto_seq=upto[1],
            dropped_messages=window // 8_000,
        )
        with stored.connections.statement() as tx:
            thread_contexts.move(tx, claim, point)
    stored.finish(claim)

    for opening_messages in (20, 2):
        monkeypatch.setattr(history, "OPENING_MESSAGES", opening_messages)
        small, large, unknown = (
            loaded(stored, thread_id, windows=[size]) for size in (4_000, 64_000, 0)
        )

        assert [*turns(2)[:1], *turns(2)[3:], *turns(3), UserMessage("now")] == small.messages
        assert (1, False) == (small.unread, small.is_cut)
        assert [*turns(2), *turns(3), UserMessage("now")] == large.messages
        assert (8, False) == (large.unread, large.is_cut)
        assert [*turns(1), *large.messages] == unknown.messages
        assert {8_000, 64_000} == set(unknown.contexts)


def test_many_runs_are_read_in_pieces(stored: StoredRuns, monkeypatch: Any) -> None:
    """None is missing where one piece ends and the next begins."""
    monkeypatch.setattr(history, "FIRST_PAGE", 2)
    thread_id = stored.thread()
    for number in range(1, 6):
        round_of(stored, thread_id, number)

    found = loaded(stored, thread_id)

    assert [m for number in range(1, 6) for m in turns(number)] == found.messages


@pytest.mark.parametrize("at_once", [1, 20])
def test_what_no_context_holds_is_not_read(
    stored: StoredRuns, monkeypatch: Any, at_once: int
) -> None:
    """Results of tools count too; what is left begins with a person's message or a whole run."""
    monkeypatch.setattr(history, "FIRST_PAGE", at_once)
    thread_id = stored.thread()
    for number in range(1, 6):
        round_of(stored, thread_id, number, "x" * 10_000)
    said(stored, thread_id, "now")

    found = loaded(stored, thread_id, 25_000)

    kept = [*turns(4, "x" * 10_000), *turns(5, "x" * 10_000), UserMessage("now")]
    assert kept == found.messages
    # Five questions and answers, and the last question; without those of 4 and 5, and "now".
    assert 11 - 5 == found.unread


def test_a_run_that_no_context_holds_leaves_the_question_after_it(stored: StoredRuns) -> None:
    """What the run is to answer is read, however large the turns before it are."""
    thread_id = stored.thread()
    round_of(stored, thread_id, 1, "x" * 10_000)
    said(stored, thread_id, "now")

    found = loaded(stored, thread_id, 5_000)

    assert [UserMessage("now")] == found.messages
    assert 2 == found.unread


def test_a_long_thread_of_messages_is_cut_as_well(stored: StoredRuns, monkeypatch: Any) -> None:
    """A long thread is cut by its bytes, but its newest message is read whatever its size."""
    monkeypatch.setattr(history, "OPENING_BYTES", 100)
    thread_id = stored.thread()
    for number in range(10):
        said(stored, thread_id, str(number) * 100)

    claim = claimed(stored, thread_id)

    with stored.connections.reading() as sql:
        [opening] = history.load_openings(sql, [claim])
        some, one = (history.load(sql, claim, opening, most) for most in (250, 50))

    assert [UserMessage("8" * 100), UserMessage("9" * 100)] == some.messages
    assert [UserMessage("9" * 100)] == one.messages
    assert (8, 9) == (some.unread, one.unread)


def test_a_long_thread_of_short_messages_is_cut_by_their_number(
    stored: StoredRuns, monkeypatch: Any
) -> None:
    """Each of them takes time and memory, however short it is; the rest is counted."""
    monkeypatch.setattr(history, "OPENING_MESSAGES", 2)
    monkeypatch.setattr(history, "MAX_MESSAGES", 4)
    thread_id = stored.thread()
    for number in range(10):
        said(stored, thread_id, str(number))

    found = loaded(stored, thread_id)

    assert [UserMessage(str(number)) for number in range(6, 10)] == found.messages
    assert 6 == found.unread


def test_what_a_group_reads_of_each_thread_is_bounded(stored: StoredRuns) -> None:
    """A group reads a bounded number and size of messages per thread; the run itself reads the
    rest.
    """
    many, large = stored.thread(), stored.thread()
    for number in range(history.OPENING_MESSAGES + 5):
        said(stored, many, str(number))
    said(stored, large, "x" * history.OPENING_BYTES)
    said(stored, large, "now")
    claims = [claimed(stored, many), claimed(stored, large)]

    with stored.connections.reading() as sql:
        of_many, of_large = history.load_openings(sql, claims)

    assert history.OPENING_MESSAGES + 1 == len(of_many.said)
    assert ["now", None] == [row.content for row in of_large.said]
    assert not of_many.is_whole and not of_large.is_whole


def test_the_first_run_of_a_thread_needs_no_more_than_its_part_of_a_group(
    stored: StoredRuns,
) -> None:
    """Most runs begin that way, and wait for no connection of their own."""
    thread_id = stored.thread()
    said(stored, thread_id, "one")
    said(stored, thread_id, "two")
    claim = claimed(stored, thread_id)

    with stored.connections.reading() as sql:
        [opening] = history.load_openings(sql, [claim])

    found = opening.history(claim)
    assert found is not None
    assert [UserMessage("one"), UserMessage("two")] == found.messages


TEXT = 'Say "\u0001" \U0001f600'
PARTS = Content(TEXT, [{"type": "text", "text": TEXT}, {"type": "text", "text": "\\"}])


@pytest.mark.parametrize("content", [TEXT, PARTS])
def test_the_claim_of_a_threads_first_run_has_what_it_answers(
    stored: StoredRuns, content: str | Content
) -> None:
    """It is the history that would have been read, without a statement of its own."""
    thread_id = stored.thread()
    said(stored, thread_id, content)
    claim = claimed(stored, thread_id)

    with stored.connections.reading() as sql:
        [opening] = history.load_openings(sql, [claim])

    found = of_first_run(claim)
    assert found is not None
    assert opening.history(claim) == found


def test_no_other_claim_has_what_its_run_answers(stored: StoredRuns) -> None:
    """A second question, a long one, a later run and one without any question are read."""
    two, long, empty = stored.thread(), stored.thread(), stored.thread()
    said(stored, two, "one")
    said(stored, two, "two")
    said(stored, long, "x" * (QUESTION_BYTES + 1))
    later = claimed(stored, two)
    stored.finish(later)
    claims = [later, claimed(stored, two), claimed(stored, long), claimed(stored, empty)]

    assert [None] * 4 == [of_first_run(claim) for claim in claims]


def test_a_resumed_run_does_not_read_the_deltas_of_finished_turns(stored: StoredRuns) -> None:
    """A long answer is stored twice, in pieces and as a whole: the whole is enough."""
    claim = stored.claimed()
    stored.write(
        claim,
        types.MessageDelta("an"),
        types.MessageDelta("swer"),
        types.MessageCompleted("m1", "answer", Usage()),
        types.ToolCallRequested("c", "t", {}),
        types.MessageDelta("open"),
    )

    with stored.connections.reading() as sql:
        found = history.own_events(sql, claim.run_id)

    assert ["message.completed", "tool.call", "message.delta"] == [event.type for event in found]
    assert sorted(found) == found
