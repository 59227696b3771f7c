"""Clocks, and times on the wire: RFC 3339, UTC, milliseconds, `Z`."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

EPOCH = datetime.fromtimestamp(0, UTC)


def now() -> datetime:
    """This machine's clock. A run's times and all leases are by Postgres' clock instead."""
    return datetime.now(UTC)


def rfc3339(moment: datetime) -> str:
    """`2026-11-24T15:04:05.123Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def rfc3339_or_none(moment: datetime | None) -> str | None:
    return None if moment is None else rfc3339(moment)


def clock_set_to(start: datetime) -> Callable[[], datetime]:
    """A clock that shows `start` now and goes on evenly, whatever is done to the machine's own."""
    began = time.monotonic()
    return lambda: start + timedelta(seconds=time.monotonic() - began)
