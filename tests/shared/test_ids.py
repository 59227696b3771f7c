"""Ids, in their order and by the clock of their process."""

import time

import pytest

from arkloop.shared import ids

DAY_NS = 24 * 60 * 60 * 10**9


def set_clock(monkeypatch: pytest.MonkeyPatch, *, nanoseconds: int) -> int:
    """Let the clock of the process stand still that long from now; returns its milliseconds."""
    at = time.time_ns() + nanoseconds
    monkeypatch.setattr(time, "time_ns", lambda: at)
    return at // 1_000_000


def test_ids_made_later_sort_later() -> None:
    """Ids of one process are in the order in which they were made, within a millisecond, too."""
    made = [ids.new_id() for _ in range(2_000)]

    assert made == sorted(made)


def test_ids_follow_a_clock_that_was_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library stays at the highest time that it has seen, which is a month ahead of the clock:
    the ids have the time of the clock all the same, and are in their order.
    """
    ids.new_id()
    now = set_clock(monkeypatch, nanoseconds=-33 * DAY_NS)

    made = [ids.new_id() for _ in range(2_000)]

    assert {now} == {one.int >> 80 for one in made}
    assert sorted(set(made)) == made
    assert made == [ids.parse_id(str(one)) for one in made]


def test_ids_stay_in_order_when_a_clock_is_set_by_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A correction of the clock, as NTP makes it, changes nothing."""
    before = ids.new_id()
    set_clock(monkeypatch, nanoseconds=-5 * 10**9)

    assert before < ids.new_id()
