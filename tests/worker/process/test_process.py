"""The time of a run, and the part of it that is left for its last call."""

import time

import pytest

from arkloop.shared.ids import new_id
from arkloop.worker.contract.outcomes import DeadlineExceeded, TimeToLand
from arkloop.worker.process.process import ActiveRun, landing_seconds


@pytest.mark.parametrize(
    ("timeout", "reserved"), [(1, 0.2), (60, 12), (300, 60), (900, 60), (86_400, 60)]
)
def test_a_part_of_the_time_is_for_the_last_call(timeout: float, reserved: float) -> None:
    """It is a fifth, and at most a minute."""
    assert reserved == landing_seconds(timeout)


@pytest.mark.parametrize(
    ("second", "can_land", "expected"),
    [
        (79, True, None),
        (81, True, TimeToLand),
        (81, False, None),
        (101, True, DeadlineExceeded),
        (101, False, DeadlineExceeded),
    ],
)
def test_a_run_lands_before_its_time_is_over(
    second: float, can_land: bool, expected: type[BaseException] | None
) -> None:
    """A run of 100 s that has used 30 s before has 50 s until it lands, 70 s until it ends."""
    run = ActiveRun(new_id())
    run.stop.can_land = can_land
    began = time.monotonic()
    run.limit_time(100, 30)

    run.enforce_time(began + second - 30 + 0.5)

    if expected is None:
        run.stop.check()
    else:
        with pytest.raises(expected):
            run.stop.check()
