"""Clocks, and times on the wire: RFC 3339, UTC, milliseconds, `Z`."""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

EPOCH = datetime.fromtimestamp(0, UTC)


def now() -> datetime:
    """Return this machine's time. A run's times and all leases are by Postgres' clock instead."""
    return datetime.now(UTC)


def rfc3339(moment: datetime) -> str:
    """Format a time as `2026-11-24T15:04:05.123Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def rfc3339_or_none(moment: datetime | None) -> str | None:
    return None if moment is None else rfc3339(moment)


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a row as JSON can have them: times and ids are text."""
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return rfc3339(value)
    return str(value) if isinstance(value, UUID) else value


def clock_set_to(start: datetime) -> Callable[[], datetime]:
    """Make a clock that shows `start` now and runs evenly, whatever the machine's own does."""
    began = time.monotonic()
    return lambda: start + timedelta(seconds=time.monotonic() - began)
