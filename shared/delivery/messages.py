"""The messages of deliveries, whose bodies have a size that receivers can count on."""

import json
from typing import Any

from sqlalchemy import Row

from arkloop.shared.times import rfc3339

#: Of a body. Receivers and what stands before them have limits; the rest can be read from the API.
MAX_BYTES = 20_000
#: Fields of `data` that are null where a body would be larger, the largest first, and all of which
#: are where the run's thread was deleted.
_LEFT_OUT = ("output", "event", "metadata")


def body(row: Row[Any]) -> bytes:
    """Return the body, of at most `MAX_BYTES` bytes of UTF-8, the same for every attempt until the
    run's thread is deleted.
    """
    data = json.loads(row.data)
    if row.thread_deleted_at is not None:
        data |= dict.fromkeys(_LEFT_OUT)
    message = {"type": row.type, "timestamp": rfc3339(row.created_at), "data": data}
    encoded = _encoded(message)
    while len(encoded) > MAX_BYTES:
        sizes = {name: len(_encoded(data[name])) for name in _LEFT_OUT if data.get(name)}
        if not sizes:
            break  # what else there is has limits of its own
        data[max(sizes, key=lambda name: sizes[name])] = None
        encoded = _encoded(message)
    return encoded


def data(row: Row[Any]) -> dict[str, Any]:
    """Return the `data` of the body."""
    return dict(json.loads(body(row))["data"])


def _encoded(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
