"""What a run's model has seen before, as it stands in the database."""

from typing import Any
from uuid import UUID

import pytest

from shared import events, threads
from shared.claims import Claim
from shared.events import Usage
from shared.ids import new_id
from tests.stored_runs import StoredRuns
from worker import history
from worker.history import History
from worker.messages import AssistantMessage, Message, ToolCall, ToolMessage, UserMessage


def said(stored: StoredRuns, thread_id: UUID, content: str) -> None:
    with stored.connections.transaction() as tx:
        threads.add_message(tx, stored.actor, thread_id, content=content)


def claimed(stored: StoredRuns, thread_id: UUID) -> Claim:
    claim = stored.claim(stored.create(thread_id))
    assert claim is not None
    return claim


def round_of(stored: StoredRuns, thread_id: UUID, number: int, output: str = "out") -> None:
    """A person's message, a run with a tool call, its answer."""
    said(stored, thread_id, f"question {number}")
    claim = claimed(stored, thread_id)
    call = f"call_{number}"
    stored.write(
        claim,
        events.MessageCompleted("m1", "let me see", Usage()),
        events.ToolCallRequested(call, "t", {"x": number}),
        events.ToolResult(call, "t", output, False, 1),
        events.MessageCompleted("m2", f"answer {number}", Usage()),
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


def loaded(stored: StoredRuns, thread_id: UUID) -> History:
    claim = claimed(stored, thread_id)
    with stored.connections.reading() as sql:
        [found] = history.load(sql, [claim])
    return found


def test_tool_turns_of_earlier_runs_are_part_of_it(stored: StoredRuns) -> None:
    """In the order of the thread."""
    thread_id = stored.thread()
    round_of(stored, thread_id, 1)
    round_of(stored, thread_id, 2)
    said(stored, thread_id, "now")

    found = loaded(stored, thread_id)

    assert [*turns(1), *turns(2), UserMessage("now")] == found.messages
    assert 0 == found.unread


def test_many_runs_are_read_in_pieces(stored: StoredRuns, monkeypatch: Any) -> None:
    """None is missing where one piece ends and the next begins."""
    monkeypatch.setattr(history, "RUNS_AT_ONCE", 2)
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
    monkeypatch.setattr(history, "MAX_BYTES", 25_000)
    monkeypatch.setattr(history, "RUNS_AT_ONCE", at_once)
    thread_id = stored.thread()
    for number in range(1, 6):
        round_of(stored, thread_id, number, "x" * 10_000)
    said(stored, thread_id, "now")

    found = loaded(stored, thread_id)

    kept = [*turns(4, "x" * 10_000)[1:], *turns(5, "x" * 10_000), UserMessage("now")]
    assert kept == found.messages
    # Five questions and answers, and the last question; without those of 4 and 5, and "now".
    assert 11 - 4 == found.unread


def test_a_long_thread_of_messages_is_cut_as_well(stored: StoredRuns, monkeypatch: Any) -> None:
    """The newest stays, whatever its size."""
    monkeypatch.setattr(history, "MAX_BYTES", 250)
    thread_id = stored.thread()
    for number in range(10):
        said(stored, thread_id, str(number) * 100)

    found = loaded(stored, thread_id)

    assert [UserMessage("8" * 100), UserMessage("9" * 100)] == found.messages
    assert 8 == found.unread
