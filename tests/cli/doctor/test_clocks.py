"""Clocks that differ."""

import time

import pytest

from arkloop.cli.doctor import clocks


@pytest.mark.parametrize(
    ("skew", "level", "shown"),
    [
        (0.0, "ok", "within 0.001 s"),
        (-1.9, "ok", "within 1.900 s"),
        (5.0, "warn", "5.0 s ahead of this machine's"),
        (-3600.0, "fail", "3,600.0 s behind this machine's"),
    ],
)
def test_a_skew_is_judged_by_its_size(skew: float, level: str, shown: str) -> None:
    """Seconds are something to look into; minutes make tokens invalid."""
    finding = clocks.judged("postgres", skew)

    assert level == finding.level
    assert shown in finding.text


def test_the_time_of_the_question_is_no_skew() -> None:
    """A slow answer with a time from within the question is on time."""

    def slow() -> float:
        time.sleep(0.05)
        now = time.time()
        time.sleep(0.05)
        return now

    assert "within 0.001 s" in clocks.of_server("redis", slow).text
