"""The conversion of stored events to messages, and to the state of a resumed run."""

from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from arkloop.shared.events import types
from arkloop.shared.events.stored_events import StoredEvent, encode
from arkloop.shared.events.types import Event
from arkloop.shared.events.usage import Usage
from arkloop.worker.agent.conversation import Turn, resume_state_from, turns_of
from arkloop.worker.contract.attachments import Attachment
from arkloop.worker.contract.messages import AssistantMessage, Message, ToolCall, ToolMessage

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STARTED = types.RunStarted("assistant@1", "scripted", "scripted-1", {})
CALL = ToolCall("call_1_1", "t", {"x": 1})


def stored(*happened: Event) -> list[StoredEvent]:
    return [encode(seq, event, NOW) for seq, event in enumerate(happened, 1)]


def completed(content: str) -> Event:
    return types.MessageCompleted(f"m-{content}", content, Usage())


def messages_of(turns: Iterable[Turn]) -> list[Message]:
    return [message for turn in turns for message in turn.messages()]


def called(call: ToolCall = CALL) -> Event:
    return types.ToolCallRequested(call.id, call.name, call.arguments)


def result(call: ToolCall = CALL, output: str = "out") -> Event:
    return types.ToolResult(call.id, call.name, output, False, 1)


def asked(request_id: str, tool_call_id: str) -> Event:
    return types.RunWaitingForInput(
        request_id=request_id, kind="question", prompt="?", tool_call_id=tool_call_id, expires_at=""
    )


def test_images_of_results_are_read_back() -> None:
    """A later run, or one that resumes, sees them."""
    file = {"file_id": "1", "name": "image-1", "media_type": "image/png", "size": 3}
    taken = types.ToolResult(CALL.id, CALL.name, "click", False, 1, [file])

    [turn] = turns_of(stored(STARTED, completed(""), called(), taken))

    assert (Attachment(kind="image", **file),) == turn.results[CALL.id].parts


def test_a_finished_turn_is_rebuilt() -> None:
    """Text, calls and results; deltas and costs count for nothing."""
    [turn] = turns_of(
        stored(
            STARTED,
            types.MessageDelta("te"),
            types.MessageDelta("xt"),
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
    """A turn with neither text nor finished calls becomes no message."""
    assert [] == messages_of(turns_of(stored(STARTED, completed(""), called())))


def test_results_are_in_the_order_of_the_calls() -> None:
    """Results are in the order of the calls, whatever order they were written in."""
    other = ToolCall("call_1_2", "u", {})
    turns = turns_of(
        stored(
            STARTED, completed(""), called(), called(other), result(other, "2"), result(CALL, "1")
        )
    )

    assert ["1", "2"] == [m.content for m in messages_of(turns)[1:]]


def test_a_result_after_a_later_turn_belongs_to_its_call() -> None:
    """A custom agent begins further calls while one that it made side by side is in progress."""
    late, other = ToolCall("late", "t", {}), ToolCall("other", "u", {})
    failed = types.ToolResult(late.id, late.name, "no", True, 1)

    turns = turns_of(
        stored(STARTED, completed("one"), called(late), completed("two"), called(other), failed)
    )

    assert [{"late"}, set()] == [turn.failed for turn in turns]
    assert [False, True] == [turn.is_open for turn in turns]
    assert [
        *(AssistantMessage("one", (late,)), ToolMessage("late", "t", "no")),
        AssistantMessage("two"),
    ] == messages_of(turns)


def test_a_result_belongs_to_the_newest_call_of_its_id() -> None:
    """A vendor may use an id again in a later turn."""
    turns = turns_of(
        stored(STARTED, completed(""), called(), completed(""), called(), result(output="2"))
    )

    assert [[], ["2"]] == [[one.content for one in turn.results.values()] for turn in turns]


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
            types.RunResumed(2, "input"),
            types.RunInputReceived("r1", "one"),
            asked("r2", "call_1_2"),
            types.RunResumed(3, "input"),
            types.RunInputReceived("r2", "two"),
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
        ([STARTED, types.MessageDelta("a")], 2),
        ([STARTED, types.MessageThinking("a"), types.MessageDelta("b")], 2),
        ([STARTED, types.MessageDelta("a"), completed("a")], None),
        ([STARTED, types.MessageDelta("a"), completed("a"), types.MessageDelta("b")], 4),
        ([STARTED, types.MessageDelta("a"), types.MessageReset(2, "x")], None),
        ([STARTED, *map(types.MessageDelta, "ab"), types.MessageReset(3, "x")], 2),
        (
            [
                STARTED,
                types.MessageDelta("a"),
                types.MessageReset(2, "x"),
                types.RunResumed(2, "worker_lost"),
                types.MessageDelta("b"),
            ],
            5,
        ),
        ([STARTED, types.MessageDelta("a"), types.RunResumed(2, "worker_lost")], 2),
    ],
)
def test_text_of_a_lost_attempt_is_void_from_here(happened: list[Event], seq: int | None) -> None:
    """It begins with the first delta after the last finished turn that is not void already."""
    lost = resume_state_from(stored(*happened)).lost

    assert seq == (lost[0].seq if lost else None)


def test_lost_text_is_counted_where_a_cost_follows_it() -> None:
    """Lost text counts as billed where a cost event follows it; costs of earlier turns do not
    matter.
    """
    cost = types.RunCost(Usage(), Decimal(0))
    lost = [STARTED, completed("a"), cost, types.MessageDelta("b")]

    assert [False, True] == [
        resume_state_from(stored(*lost, *then)).is_counted for then in ([], [cost])
    ]
    assert not resume_state_from(stored(STARTED, cost)).is_counted
