"""From stored events to messages, and to where a resumed run goes on."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from shared import events
from shared.events import Event, StoredEvent, Usage, encode
from worker.conversation import earlier_of, lost_events_of, messages_of, turns_of
from worker.messages import AssistantMessage, ToolCall, ToolMessage

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STARTED = events.RunStarted("assistant@1", "scripted", "scripted-1")
CALL = ToolCall("call_1_1", "t", {"x": 1})


def stored(*happened: Event) -> list[StoredEvent]:
    return [encode(seq, event, NOW) for seq, event in enumerate(happened, 1)]


def completed(content: str) -> Event:
    return events.MessageCompleted(f"m-{content}", content, Usage())


def called(call: ToolCall = CALL) -> Event:
    return events.ToolCallRequested(call.id, call.name, call.arguments)


def result(call: ToolCall = CALL, output: str = "out") -> Event:
    return events.ToolResult(call.id, call.name, output, False, 1)


def asked(request_id: str, tool_call_id: str) -> Event:
    return events.RunWaitingForInput(
        request_id=request_id, kind="question", prompt="?", tool_call_id=tool_call_id, expires_at=""
    )


def test_a_finished_turn_is_rebuilt() -> None:
    """Text, calls and results; deltas and costs count for nothing."""
    [turn] = turns_of(
        stored(
            STARTED,
            events.MessageDelta("te"),
            events.MessageDelta("xt"),
            completed("text"),
            called(),
            result(),
        )
    )

    assert ("m-text", "text", [CALL], False) == (
        turn.message_id,
        turn.content,
        turn.calls,
        turn.is_open,
    )
    assert [AssistantMessage("text", (CALL,)), ToolMessage("call_1_1", "t", "out")] == (
        messages_of([turn])
    )


def test_a_turn_with_a_call_without_result_is_open() -> None:
    """The model never sees such a call: it would be a conversation that no provider takes."""
    other = ToolCall("call_1_2", "u", {})
    turns = turns_of(stored(STARTED, completed("text"), called(), called(other), result(other)))

    assert turns[0].is_open
    assert [AssistantMessage("text", (other,)), ToolMessage("call_1_2", "u", "out")] == (
        messages_of(turns)
    )


def test_a_turn_of_calls_without_results_says_nothing() -> None:
    """Neither text nor finished calls: no message at all."""
    assert [] == messages_of(turns_of(stored(STARTED, completed(""), called())))


def test_results_are_in_the_order_of_the_calls() -> None:
    """Whatever order they were written in."""
    other = ToolCall("call_1_2", "u", {})
    turns = turns_of(
        stored(
            STARTED, completed(""), called(), called(other), result(other, "2"), result(CALL, "1")
        )
    )

    assert ["1", "2"] == [m.content for m in messages_of(turns)[1:]]


def test_answers_of_people_find_their_calls() -> None:
    """Each answer belongs to the call whose question it answers."""
    other = ToolCall("call_1_2", "u", {})
    [turn] = turns_of(
        stored(
            STARTED,
            completed(""),
            called(),
            called(other),
            asked("r1", "call_1_1"),
            events.RunResumed(2, "input"),
            events.RunInputReceived("r1", "one"),
            asked("r2", "call_1_2"),
            events.RunResumed(3, "input"),
            events.RunInputReceived("r2", "two"),
        )
    )

    assert {"call_1_1": "one", "call_1_2": "two"} == turn.answers
    assert {"call_1_1": 1, "call_1_2": 1} == turn.asked


@pytest.mark.parametrize("arguments", [{}, {"a": [1, None]}, "{broken", None, [1]])
def test_arguments_are_what_the_model_said(arguments: Any) -> None:
    """An object, or the text that was none."""
    call = ToolCall("c", "t", arguments)

    assert [call] == turns_of(stored(STARTED, completed(""), called(call)))[0].calls


@pytest.mark.parametrize(
    ("happened", "seq"),
    [
        ([STARTED], None),
        ([STARTED, events.MessageDelta("a")], 2),
        ([STARTED, events.MessageThinking("a"), events.MessageDelta("b")], 2),
        ([STARTED, events.MessageDelta("a"), completed("a")], None),
        ([STARTED, events.MessageDelta("a"), completed("a"), events.MessageDelta("b")], 4),
        ([STARTED, events.MessageDelta("a"), events.MessageReset(2, "x")], None),
        (
            [
                STARTED,
                events.MessageDelta("a"),
                events.MessageReset(2, "x"),
                events.RunResumed(2, "worker_lost"),
                events.MessageDelta("b"),
            ],
            5,
        ),
        ([STARTED, events.MessageDelta("a"), events.RunResumed(2, "worker_lost")], 2),
    ],
)
def test_text_of_a_lost_attempt_is_void_from_here(happened: list[Event], seq: int | None) -> None:
    """From the first delta after the last finished turn or reset."""
    lost = lost_events_of(stored(*happened))

    assert seq == (lost[0].seq if lost else None)


def test_lost_text_is_counted_where_a_cost_follows_it() -> None:
    """As when a deploy has broken it off; the costs of turns before it say nothing of it."""
    cost = events.RunCost(Usage(), Decimal(0))
    lost = [STARTED, completed("a"), cost, events.MessageDelta("b")]

    assert [False, True] == [earlier_of(stored(*lost, *then)).is_counted for then in ([], [cost])]
    assert not earlier_of(stored(STARTED, cost)).is_counted
