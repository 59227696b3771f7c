"""The fold from events to turns; `tests/acceptance/test_timeline.py` compares it to a client's."""

from typing import Any

import pytest

from arkloop.shared.events.turns import SUPERFLUOUS_TYPES, Turns

Happened = tuple[str, dict[str, Any]]


def delta(text: str) -> Happened:
    return "message.delta", {"content": text}


def completed(number: int, text: str = "", **more: Any) -> Happened:
    return "message.completed", {"message_id": f"m{number}", "content": text, "usage": {}, **more}


def call(id_: str) -> Happened:
    return "tool.call", {"tool_call_id": id_, "name": "t", "arguments": {}}


def piece(id_: str, text: str) -> Happened:
    return "tool.call.delta", {"tool_call_id": id_, "name": "t", "arguments_delta": text}


def result(id_: str, output: str = "ok") -> Happened:
    data = {"tool_call_id": id_, "name": "t", "output": output, "is_error": False}
    return "tool.result", {**data, "duration_ms": 1}


def asked(id_: str) -> Happened:
    return "run.waiting_for_input", {"request_id": id_, "kind": "question", "prompt": "?"}


def folded(*happened: Happened, size: int = 0, **how: Any) -> Turns:
    turns = Turns(**how)
    for seq, (type_, data) in enumerate(happened, 1):
        turns.fold(seq, type_, data, size)
    return turns


STEPS = (
    *(delta("a "), piece("c1", "{"), piece("c1", "}"), completed(1, "a "), call("c1")),
    *(result("c1"), delta("b"), completed(2, "b"), asked("q1")),
    *(
        ("run.input_received", {"request_id": "q1", "content": "yes"}),
        delta("c"),
        completed(3, "c"),
    ),
)


def test_what_a_finished_turn_has_streamed_is_not_needed() -> None:
    """Without text and arguments of finished turns the turns are the same."""
    some = [one for one in STEPS if one[0] not in SUPERFLUOUS_TYPES]

    assert folded(*STEPS).shown() == folded(*some).shown()
    assert ["a ", "b", "c"] == [turn["text"] for turn in folded(*STEPS).shown()]


def test_a_call_has_its_progress_until_its_result() -> None:
    """The last report of a call in progress is there, and goes when the result comes."""
    report = ("tool.progress", {"tool_call_id": "c1", "progress": 1, "total": 3})
    begun = (completed(1), call("c1"), report)

    [[running]] = [turn["tool_calls"] for turn in folded(*begun).shown()]
    [[ended]] = [turn["tool_calls"] for turn in folded(*begun, result("c1")).shown()]

    assert ({"progress": 1, "total": 3}, None) == (running["progress"], running["result"])
    assert "progress" not in ended
    assert {"output": "ok", "is_error": False, "duration_ms": 1} == ended["result"]


def test_a_reset_leaves_what_came_before_it() -> None:
    """Text before the reset's place stays; a turn of which nothing is left is gone."""
    partly = folded(delta("kept"), delta("void"), ("message.reset", {"from_seq": 2}))
    wholly = folded(delta("void"), piece("c1", "{"), ("message.reset", {"from_seq": 1}))

    assert ["kept"] == [turn["text"] for turn in partly.shown()]
    assert [] == wholly.shown()
    assert 0 == wholly.size


def test_a_question_ends_a_turn() -> None:
    """An agent may ask before it has said anything: what it says then comes after the question."""
    turns = folded(asked("q1"), delta("then"), completed(1, "then")).shown()

    assert [("", 1), ("then", 0)] == [(turn["text"], len(turn["questions"])) for turn in turns]


def test_why_an_output_was_refused_is_part_of_its_turn() -> None:
    """A turn whose text was not the run's structured output says so."""
    [turn, other] = folded(completed(1, "x", output_errors=["no"]), completed(2, "y")).shown()

    assert ["no"] == turn["output_errors"]
    assert "output_errors" not in other


@pytest.mark.parametrize(("before", "shown"), [(0, []), (1, ["a "]), (2, ["a ", "b"])])
def test_turns_before_a_number(before: int, shown: list[str]) -> None:
    """Only earlier turns are kept, complete."""
    turns = folded(*STEPS, before=before)

    assert folded(*STEPS).shown()[:before] == turns.shown()
    assert shown == [turn["text"] for turn in turns.shown()]
    assert turns.is_full


def test_the_first_turns_go_where_they_are_too_large() -> None:
    """The last ones stay as they are, at least one of them; `first` counts those that are gone."""
    turns = folded(*STEPS, size=10, most_bytes=45)
    last = folded(*STEPS, size=10, most_bytes=1)

    assert (2, folded(*STEPS).shown()[2:]) == (turns.first, turns.shown())
    assert (2, folded(*STEPS).shown()[2:]) == (last.first, last.shown())
    assert 20 == last.size


def test_events_of_calls_that_are_gone_change_nothing() -> None:
    """A late result of a turn that is not kept is passed over."""
    turns = folded(completed(1), call("c1"), completed(2), result("c1"), size=10, most_bytes=15)

    assert [[]] == [turn["tool_calls"] for turn in turns.shown()]
