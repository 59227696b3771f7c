"""The newest count of a vendor's that a run finds in its thread."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from arkloop.shared.claim import Claim
from arkloop.shared.events import types
from arkloop.shared.events.usage import Usage
from arkloop.shared.ids import new_id
from arkloop.shared.threads import thread_contexts, threads
from arkloop.worker.agent.conversation import Counted
from arkloop.worker.process import history
from tests.stored_runs import StoredRuns, ago

#: The route of runs here, and its model.
OWN = ("scripted", "scripted-1")


def said(stored: StoredRuns, thread_id: UUID, content: str) -> None:
    with stored.connections.transaction() as tx:
        threads.add_message(tx, stored.actor, thread_id, content=content)


def claimed(stored: StoredRuns, thread_id: UUID) -> Claim:
    return stored.held(stored.create(thread_id))


def found(stored: StoredRuns, thread_id: UUID, windows: Iterable[int] = (0,)) -> Counted | None:
    """Return the count that the thread's next run finds."""
    claim = claimed(stored, thread_id)
    with stored.connections.reading() as sql:
        [opening] = history.load_openings(sql, [claim])
        seen = history.load(sql, claim, opening, history.MAX_BYTES, windows)
    stored.finish(claim)
    return seen.counted


def counted(stored: StoredRuns, thread_id: UUID, *happened: types.Event) -> Claim:
    """Store a run of two turns with these events between them, and a message after it."""
    said(stored, thread_id, "question")
    claim = claimed(stored, thread_id)
    stored.write(
        claim,
        types.MessageCompleted("m1", "let me see", Usage(input_tokens=700)),
        types.ToolCallRequested("c", "t", {}),
        types.ToolResult("c", "t", "out", False, 1),
        *happened,
    )
    stored.finish(claim, message=(new_id(), "answer"))
    said(stored, thread_id, "now")
    return claim


def test_the_newest_request_that_a_vendor_has_counted_is_known(stored: StoredRuns) -> None:
    """How many tokens it had, before which turn, and on which route with which model."""
    thread_id = stored.thread()
    answer = types.MessageCompleted("m2", "answer", Usage(input_tokens=900))
    claim = counted(stored, thread_id, answer)

    assert Counted(900, (claim.position, 5), OWN) == found(stored, thread_id)


@pytest.mark.parametrize(
    "usage", [Usage(input_tokens=900, source="estimated"), Usage(input_tokens=0)]
)
def test_an_estimate_is_no_count(stored: StoredRuns, usage: Usage) -> None:
    """The one that was reported before it is used."""
    thread_id = stored.thread()
    claim = counted(stored, thread_id, types.MessageCompleted("m2", "answer", usage))

    assert Counted(700, (claim.position, 2), OWN) == found(stored, thread_id)


def test_a_count_is_of_the_route_that_made_it_and_of_what_was_sent_then(
    stored: StoredRuns,
) -> None:
    """A fallback's is not the run's route's, and a truncation makes all counts before it void."""
    answer = types.MessageCompleted("m2", "answer", Usage(input_tokens=900))
    fallback = types.RunFallback("scripted", "other", "m", "provider.timeout")
    moved = types.ContextCompacted(window_tokens=8_000, upto_position=1)
    fell_back, truncated, of_another, changed = (stored.thread() for _ in range(4))
    counted(stored, fell_back, fallback, answer)
    counted(stored, truncated, moved)
    stored.set(counted(stored, of_another, answer).run_id, persona_id="other@1")
    stored.set(counted(stored, changed, answer).run_id, model="earlier")

    count = found(stored, fell_back)

    assert count is not None
    assert (("other", "m"), 900) == (count.route, count.input_tokens)
    assert None is found(stored, truncated)
    assert None is found(stored, of_another)
    count = found(stored, changed)
    assert count is not None and ("scripted", "earlier") == count.route


@pytest.mark.parametrize(
    "before",
    [
        types.RunLimitReached("budget", "The budget is used up."),
        types.RunSettingsDropped("scripted", ["attachments"]),
    ],
    ids=["last_call", "attachments"],
)
def test_a_request_that_left_out_a_part_counts_for_no_other(
    stored: StoredRuns, before: types.Event
) -> None:
    """The count before it is used: a last call may have less of the conversation than later
    requests, and refused attachments are sent again by the next run.
    """
    thread_id = stored.thread()
    short = types.MessageCompleted("m2", "answer", Usage(input_tokens=300))
    claim = counted(stored, thread_id, before, short)

    assert Counted(700, (claim.position, 2), OWN) == found(stored, thread_id)


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (types.RunFallback("scripted", "other", "m", "provider.timeout"), ("other", "m")),
        (types.RunSettingsDropped("scripted", ["attachments"]), None),
    ],
    ids=["fallback", "attachments"],
)
def test_what_a_run_does_before_its_truncation_point_counts_after_it(
    stored: StoredRuns, before: types.Event, expected: tuple[str, str] | None
) -> None:
    """The route of a count, and whether its request left out attachments, where the truncation
    point lies between those events and the counted turn.
    """
    thread_id = stored.thread()
    said(stored, thread_id, "question")
    claim = claimed(stored, thread_id)
    point = types.ContextCompacted(window_tokens=8_000, upto_position=claim.position, upto_seq=5)
    called = types.ToolCallRequested("c", "t", {})
    first, second, last = (
        types.MessageCompleted(id_, "text", Usage(input_tokens=900)) for id_ in ("m1", "m2", "m3")
    )
    out = types.ToolResult("c", "t", "out", False, 1)
    stored.write(claim, before, first, called, out, second, called, out, point, last)
    with stored.connections.statement() as tx:
        thread_contexts.move(tx, claim, point)
    stored.finish(claim, message=(new_id(), "text"))
    said(stored, thread_id, "now")

    count = found(stored, thread_id, windows=[8_000])

    assert expected == (count and count.route)


@pytest.mark.parametrize("superseded_at", [None, ago(seconds=1)], ids=["failed", "superseded"])
def test_a_count_is_void_once_a_later_run_has_moved_the_truncation_point(
    stored: StoredRuns, superseded_at: Any
) -> None:
    """That run has no turn, and its events are not read where a retry has superseded it."""
    thread_id = stored.thread()
    point = types.ContextCompacted(window_tokens=8_000, upto_position=1)
    ahead = claimed(stored, thread_id)
    with stored.connections.statement() as tx:
        thread_contexts.move(tx, ahead, replace(point, window_tokens=64_000))
    stored.finish(ahead)
    counted(stored, thread_id, types.MessageCompleted("m2", "answer", Usage(input_tokens=900)))
    before = found(stored, thread_id)
    moving = claimed(stored, thread_id)
    stored.write(moving, point)
    with stored.connections.statement() as tx:
        thread_contexts.move(tx, moving, point)
    stored.finish(moving)
    stored.set(moving.run_id, superseded_at=superseded_at)

    assert before is not None and 900 == before.input_tokens
    assert None is found(stored, thread_id)
