"""Successes without events: the error of a proxy, a whole answer, or the page of another server.

The SDKs look for events in them, find none, and say nothing.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

#: The beginnings of an object, a list and a page; no line of an event begins so.
_BEGINNINGS = (b"{", b"[", b"<")
_MAX_BYTES = 64 * 1024  # of what is read for the error's text


class NotEvents(Exception):
    """A body that is no stream of events; `body` is its JSON, or its text.

    It has the parts of an SDK's `APIError`.
    """

    def __init__(self, body: Any) -> None:
        self.message = "Error code: 200"
        self.body = body
        super().__init__(self.message)


def only_events(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the parts of a stream of events. Raises: NotEvents"""
    coming = iter(parts)
    for part in coming:
        if not (begun := part.lstrip()):
            continue
        if begun.startswith(_BEGINNINGS):
            raise NotEvents(_body(begun, coming))
        yield begun
        break
    yield from coming


def _body(begun: bytes, coming: Iterator[bytes]) -> Any:
    for part in coming:
        begun += part
        if len(begun) > _MAX_BYTES:
            break
    try:
        return json.loads(begun)
    except (ValueError, RecursionError):
        return begun.decode(errors="replace")
