"""Deeds that no correct service does, each with the invariant that it breaks."""

from collections.abc import Callable
from typing import Any

from tests.chaos.correct_journal import NOT_ENDED, Tale, Told
from tests.chaos.told_events import (
    call,
    completed,
    completed_turn,
    cost,
    deltas,
    expect,
    failed,
    received,
    reset,
    result,
    resumed,
    started,
    used,
)

SpoilTale = Callable[[Tale], object]


def insert(tale: Tale, run: str, seq: int, *happened: Any) -> None:
    """Put events before the one of this number."""
    tale.runs[run].events[seq - 1 : seq - 1] = happened


def _change(tale: Tale, run: str, seq: int, **data: Any) -> None:
    kind, old = tale.runs[run].events[seq - 1]
    tale.runs[run].events[seq - 1] = (kind, {**old, **data})


def _remove(tale: Tale, run: str, *seqs: int) -> None:
    for seq in sorted(seqs, reverse=True):
        del tale.runs[run].events[seq - 1]


def _swap(tale: Tale, run: str, seq: int) -> None:
    events = tale.runs[run].events
    events[seq - 1], events[seq] = events[seq], events[seq - 1]


def _append(tale: Tale, run: str, *happened: Any) -> None:
    tale.runs[run].events.extend(happened)


def update(tale: Tale, run: str, **fields: Any) -> None:
    for name, value in fields.items():
        assert hasattr(tale.runs[run], name)
        setattr(tale.runs[run], name, value)


def tell(tale: Tale, *events: Any, **expected: Any) -> None:
    tale.runs["other"] = Told("other", list(events), expect("completed", **expected), begins=400)


def _a_turn(text: str = "x") -> list[Any]:
    return [*deltas(text), completed_turn("m", text), cost(1), completed("m", 1)]


def slow_cancel(tale: Tale) -> None:
    update(tale, "cancel", pause=2.0)
    insert(tale, "cancel", 4, *deltas("x", "x", "x"))
    update(tale, "cancel", cancel_before=4)


TALES: list[tuple[str, str, SpoilTale]] = [
    ("I3", "an event after the end", lambda t: _append(t, "talk", *deltas("late"))),
    ("I3", "two ends", lambda t: _append(t, "talk", failed("run.timeout", 1))),
    ("I3", "the end is not of the last turn", lambda t: _change(t, "talk", 6, message_id="m0")),
    ("I3", "no message", lambda t: update(t, "talk", messages=[])),
    ("I3", "two messages", lambda t: update(t, "talk", messages=t.runs["talk"].answer() * 2)),
    ("I4", "it begins in the middle", lambda t: _remove(t, "talk", 1)),
    ("I4", "it begins again", lambda t: insert(t, "talk", 2, started())),
    ("I5", "it fails without a reason", lambda t: tell(t, started(), failed("run.timeout"))),
    ("I5", "it never ends", lambda t: tell(t, started(), *deltas("x"))),
    ("I7", "both at once", lambda t: update(t, "second", begins=t.runs["first"].begins)),
    ("I7", "a claim before the end", lambda t: update(t, "first", pause=5.5)),
    ("I7", "two that never end", lambda t: update(t, "first", body=NOT_ENDED)),
    ("I8", "an attempt is skipped", lambda t: _change(t, "tools", 16, attempt=4)),
    ("I8", "an attempt comes again", lambda t: _change(t, "tools", 16, attempt=2)),
    ("I8", "a piece of a zombie", lambda t: insert(t, "tools", 19, *deltas("b "))),
    ("I8", "a piece is lost", lambda t: _remove(t, "talk", 3)),
    ("I8", "not what was to be said", lambda t: tell(t, started(), *_a_turn(), text="y")),
    ("I9", "two results", lambda t: insert(t, "tools", 7, result("c1"))),
    ("I9", "a result of no call", lambda t: insert(t, "talk", 2, result("c9"))),
    ("I9", "results in another order", lambda t: _swap(t, "ask", 12)),
    ("I9", "unknown for no reason", lambda t: _change(t, "tools", 11, attempt=1, reason="deploy")),
    ("I9", "no result", lambda t: _remove(t, "ask", 13)),
    ("I9", "an effect that was never made", lambda t: t.effects.clear()),
    ("I10", "a turn again", lambda t: insert(t, "tools", 6, completed_turn("m9", ""), cost(2))),
    ("I10", "a message id again", lambda t: _change(t, "tools", 7, message_id="m1")),
    ("I10", "a call id again", lambda t: insert(t, "tools", 10, call("c2", "sleep"))),
    ("I10", "no reset", lambda t: _remove(t, "tools", 17)),
    ("I10", "a reset from elsewhere", lambda t: _change(t, "tools", 17, from_seq=13)),
    ("I10", "a reset of nothing", lambda t: insert(t, "talk", 2, reset(2))),
    ("I10", "a turn in two pieces", lambda t: insert(t, "tools", 4, resumed(2))),
    ("I11", "completed after a cancel", lambda t: update(t, "too_late", cancel_before=2)),
    ("I11", "a slow cancel", slow_cancel),
    ("I11", "work after the wish", lambda t: insert(t, "cancel", 5, call("c", "sleep"))),
    ("I12", "an answer is used twice", lambda t: insert(t, "ask", 9, received("r1", "Rome"))),
    ("I12", "the model hears another", lambda t: _change(t, "ask", 12, output="Bonn")),
    ("I12", "an answer is lost", lambda t: _remove(t, "ask", 8)),
    ("I12", "it asks too often", lambda t: t.runs["ask"].expect.update(asks=1)),
    ("I13", "it continues while it waits", lambda t: insert(t, "ask", 7, *deltas("x"))),
    ("I13", "a lost worker of a waiting run", lambda t: _change(t, "ask", 7, reason="deploy")),
    ("I13", "resumed and not waiting", lambda t: insert(t, "talk", 2, resumed(1, "input"))),
    ("I17", "given up too early", lambda t: _remove(t, "poison", 3)),
    ("I17", "given up too late", lambda t: insert(t, "poison", 4, resumed(4))),
    ("I17", "a harmless run", lambda t: _change(t, "invalid", 3, **failed("worker.crashed")[1])),
    ("I17", "another end", lambda t: _change(t, "poison", 4, **failed("run.timeout")[1])),
    ("I18", "counted twice", lambda t: _change(t, "talk", 6, **used(2))),
    ("I18", "a turn not counted", lambda t: _change(t, "tools", 22, **used(2, 7))),
    ("I18", "the cost falls", lambda t: _change(t, "tools", 10, **used(0))),
    ("I18", "no cost at the end", lambda t: _change(t, "talk", 5, **used(0))),
]
