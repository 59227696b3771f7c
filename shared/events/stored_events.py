"""Events as they are stored and sent: numbered, and the one place where they are encoded.

The wire form is `{"seq": …, "type": …, "data": {…}, "created_at": …}`.
"""

import json
from datetime import datetime
from typing import NamedTuple

from arkloop.shared.events.plain import clean, plain
from arkloop.shared.events.types import (
    STEP_TYPES,
    TERMINAL_TYPES,
    ContextCompacted,
    Event,
    MessageDelta,
    MessageThinking,
)
from arkloop.shared.times import rfc3339


class StoredEvent(NamedTuple):
    """A numbered event; `payload` is its JSON text, the same bytes for everyone.

    `prompts` are those that are stored with it, on its way to Postgres; see `prompts.py`.
    """

    seq: int
    type: str
    payload: str
    prompts: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes of the event, as followers get it."""
        return len(self.payload if self.payload.isascii() else self.payload.encode())

    @property
    def stored_size(self) -> int:
        """Bytes of all that is stored with it."""
        return self.size + len(self.prompts or b"")

    @property
    def is_terminal(self) -> bool:
        return self.type in TERMINAL_TYPES

    @property
    def ends_step(self) -> bool:
        """True if a crash after this event resumes after it."""
        return self.type in STEP_TYPES


_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def encode(seq: int, event: Event, created_at: datetime) -> StoredEvent:
    """Number and encode an event; the text never contains a line break, NUL or surrogate."""
    # Nine of ten events are pieces of text, of one field each: made by hand in a third of the time.
    if isinstance(event, MessageDelta | MessageThinking):
        data = f'{{"content":{_JSON.encode(clean(event.content))}}}'
    else:
        data = _JSON.encode(plain(event))
    payload = (
        f'{{"seq":{seq},"type":"{event.type}","data":{data},"created_at":"{rfc3339(created_at)}"}}'
    )
    return StoredEvent(seq, event.type, payload)


def with_content(payload: str, content: str) -> str:
    """Return the payload of a `run.steered` whose message says this instead."""
    event = json.loads(payload)
    event["data"]["content"] = content
    event["data"].pop("parts", None)
    return _JSON.encode(event)


def without_summary(payload: str, *, is_void: bool) -> str:
    """Return the payload of a `context.compacted` without its summary.

    With `is_void` it has no truncation point either, so that a run that resumes begins with the
    whole thread: without the summary it would not know what lies before the point.
    """
    event = json.loads(payload)
    if is_void:
        event["data"] = plain(ContextCompacted(window_tokens=event["data"]["window_tokens"]))
    event["data"].pop("summary", None)
    return _JSON.encode(event)
