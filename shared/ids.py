"""Identifiers: UUIDv7 for rows (RFC 9562), 32 hex digits for traces (W3C trace context)."""

import hashlib
import re
import secrets
from uuid import UUID

import uuid_utils.compat

#: How a UUIDv7 is written here, and no other way.
CANONICAL = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def new_id() -> UUID:
    """Make a UUIDv7: ids made later sort later, to the millisecond."""
    return uuid_utils.compat.uuid7()


def parse_id(text: object) -> UUID | None:
    """Parse a UUIDv7; None unless `text` is its one canonical form."""
    return UUID(text) if isinstance(text, str) and CANONICAL.fullmatch(text) else None


def new_trace_id() -> str:
    """Make 32 hex digits, never all zero."""
    return secrets.token_hex(16)


def span_id_of(key: str) -> str:
    """Make the 16 hex digits of the span that the key names: the same in every process."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]
