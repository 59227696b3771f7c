"""Events of AG-UI as frames of Server-Sent Events."""

from ag_ui.core import BaseEvent


def numbered(event: BaseEvent, cursor: str) -> bytes:
    """Return the frame of an event, with the cursor from which a client continues behind it."""
    return b"data: %b\nid: %b\n\n" % (_encoded(event), cursor.encode())


def without_number(event: BaseEvent) -> bytes:
    """Return the frame of an event behind which no client continues."""
    return b"data: %b\n\n" % _encoded(event)


def _encoded(event: BaseEvent) -> bytes:
    return event.model_dump_json(by_alias=True).encode()
