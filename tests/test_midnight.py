"""The end of a day, which tests pass by."""

import time
from datetime import datetime

import pytest

from tests import midnight


@pytest.mark.parametrize(
    ("now", "seconds"),
    [
        ("2026-11-30T23:59:50", 10),
        ("2026-12-31T23:59:59.75", 0.25),
        ("2028-02-29T12:00:00", 43_200),
        ("2026-12-01T00:00:00", 86_400),
    ],
)
def test_a_day_ends_at_midnight(now: str, seconds: float) -> None:
    """The last day of a month or of a year does so, too."""
    assert seconds == midnight.left_of_day(datetime.fromisoformat(f"{now}+00:00"))


@pytest.mark.parametrize(("left", "waits"), [(0.3, True), (midnight.SECONDS + 1, False)])
def test_the_end_of_a_day_is_waited_for_if_it_is_near(
    monkeypatch: pytest.MonkeyPatch, left: float, waits: bool
) -> None:
    """A test begins on the day on which it ends, and at once at any other time."""
    monkeypatch.setattr(midnight, "left_of_day", lambda _now: left)
    began = time.monotonic()

    midnight.pass_by()

    assert waits == (time.monotonic() - began > left)
