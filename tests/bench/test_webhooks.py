"""The verdict of `python -m bench.webhooks`: it notices what must never happen."""

from collections.abc import Callable
from typing import Any

import pytest

from bench.webhooks.verdict import Verdict, judge, untried

Arrivals = list[dict[str, Any]]
EXPECTED = [("run-1", 2), ("run-1", 5), ("run-2", 2)]


def arrivals() -> Arrivals:
    """Return what a receiver has written that was down at first and then got one event twice."""
    return [
        _arrival("a", "run-1", 2, at=10, is_confirmed=False),
        _arrival("a", "run-1", 2, at=15),
        _arrival("a", "run-1", 2, at=15.5),
        _arrival("b", "run-2", 2, at=16),
        _arrival("c", "run-1", 5, at=17),
    ]


def _arrival(id_: str, run_id: str, seq: int, at: float, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "healthy",
        "id": id_,
        "is_genuine": True,
        "run_id": run_id,
        "seq": seq,
        "sent_for": "1970-01-01T00:00:09.000Z",
        "at": at,
        "is_confirmed": True,
        **changes,
    }


def test_what_is_promised_is_accepted() -> None:
    """Repetitions are counted; the time of an event ends with its first confirmed arrival."""
    verdict = judge(EXPECTED, arrivals())

    assert [] == verdict.faults
    assert (3, 5, 1) == (verdict.events, verdict.attempts, verdict.duplicates)
    assert [6, 7, 8] == sorted(verdict.delays)


def _lose(found: Arrivals) -> None:
    del found[3]


def _confirm_nothing(found: Arrivals) -> None:
    found[3]["is_confirmed"] = False


def _overtake(found: Arrivals) -> None:
    found[4]["at"] = 14


def _overtake_unconfirmed(found: Arrivals) -> None:
    found.append({**found[4], "at": 14, "is_confirmed": False})


def _rename(found: Arrivals) -> None:
    found[2]["id"] = "d"


def _share_an_id(found: Arrivals) -> None:
    found[3]["id"] = "a"


def _forge(found: Arrivals) -> None:
    found.append({**found[0], "is_genuine": False, "run_id": None, "seq": None})


def _invent(found: Arrivals) -> None:
    found.append(_arrival("e", "run-3", 1, at=20))


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (_lose, "lost: ('run-2', 2)"),
        (_confirm_nothing, "lost: ('run-2', 2)"),
        (_overtake, "out of order: ('run-1', 5)"),
        (_overtake_unconfirmed, "out of order: ('run-1', 5)"),
        (_rename, "2 ids of one event: ('run-1', 2)"),
        (_share_an_id, "2 events under one id: a"),
        (_forge, "1 requests without a valid signature"),
        (_invent, "nobody's event: ('run-3', 1)"),
    ],
)
def test_a_verdict_notices(spoil: Callable[[Arrivals], None], fault: str) -> None:
    """Events that are lost, out of order, without an id of their own, or not genuine are faults."""
    found = arrivals()
    spoil(found)

    [noticed] = judge(EXPECTED, found).faults

    assert noticed.startswith(fault)


@pytest.mark.parametrize(
    ("created", "events", "kills", "expected"),
    [
        (100, 90, {"worker, at a point": 1}, []),
        (0, 90, {"worker, at a point": 1}, ["no run was created"]),
        (100, 0, {"worker, at a point": 1}, ["no events for gone"]),
        (100, 90, {"web": 7}, ["nothing was killed: worker, at a point"]),
    ],
)
def test_what_was_not_tried_is_noticed(
    created: int, events: int, kills: dict[str, int], expected: list[str]
) -> None:
    """No event is lost where there are none, or where nothing disturbs them."""
    verdicts = {"healthy": Verdict(events=90), "gone": Verdict(events=events)}

    assert expected == untried(created, verdicts, kills, "worker, at a point")


def test_a_short_try_may_be_without_kills() -> None:
    """A point of a kill may be beyond the end of a few seconds."""
    assert [] == untried(1, {"healthy": Verdict(events=1)}, {}, None)
