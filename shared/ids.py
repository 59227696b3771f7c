"""Identifiers: UUIDv7 for rows (RFC 9562), 32 hex digits for traces (W3C trace context)."""

import hashlib
import re
import secrets
import time
from itertools import count
from uuid import UUID

import uuid_utils.compat

#: How a UUIDv7 is written here, and no other way.
CANONICAL = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

#: Ids stay in their order while a clock is set back by less, and may be ahead of it by that.
_MOST_AHEAD_MS = 60_000
_BITS = 42
_counter = count(secrets.randbits(_BITS - 1))


def new_id() -> UUID:
    """Make a UUIDv7: ids made later sort later, unless the clock was set back meanwhile."""
    made, now = uuid_utils.compat.uuid7(), time.time_ns() // 1_000_000
    # The library never goes back: after a moment in which the clock was ahead, all of its ids have
    # that time until the process ends, or the time has come.
    return made if (made.int >> 80) - now <= _MOST_AHEAD_MS else _id_of(now)


def _id_of(milliseconds: int) -> UUID:
    """Make a UUIDv7 of this time, which sorts after those that were made for it before."""
    number = next(_counter) % (1 << _BITS)
    high, low = divmod(number, 1 << 30)
    bits = milliseconds << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low << 32
    return UUID(int=bits | secrets.randbits(32))


def parse_id(text: object) -> UUID | None:
    """Parse a UUIDv7; None unless `text` is its one canonical form."""
    return UUID(text) if isinstance(text, str) and CANONICAL.fullmatch(text) else None


def new_trace_id() -> str:
    """Make 32 hex digits, never all zero."""
    return secrets.token_hex(16)


def span_id_of(key: str) -> str:
    """Make the 16 hex digits of the span that the key names: the same in every process."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]
