"""The end of a day by UTC: budgets begin anew with a month, reports and partitions with a day."""

import threading
from datetime import UTC, datetime, timedelta

#: Few tests take longer than this.
SECONDS = 30


def left_of_day(now: datetime) -> float:
    """Return the seconds until the next day begins."""
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return (today + timedelta(days=1) - now).total_seconds()


def pass_by() -> None:
    """Wait for the next day if this one is over in a moment.

    A test that spends money, or counts days, then has all of it in one month and on one day.
    """
    left = left_of_day(datetime.now(UTC))
    if left < SECONDS:
        threading.Event().wait(left + 0.1)
