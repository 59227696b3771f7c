"""The conversation of a thread up to a run, as an agent outside of the service gets it."""

from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Subquery, exists, func, or_, select

from arkloop.shared.storage.tables.threads import messages

#: The newest messages of the thread that an agent gets, and their bytes of UTF-8 together.
MAX_MESSAGES = 500
MAX_BYTES = 1024 * 1024

#: `role`, `content`, and `files` where the message has some.
Message = dict[str, Any]


def messages_before(sql: Connection, thread_id: UUID, position: int) -> list[Message]:
    """Return the messages before this position, oldest first; the newest one whatever its size."""
    newest = _newest(thread_id, position)
    length = func.octet_length(newest.c.content)
    sized = select(
        newest, func.sum(length).over(order_by=newest.c.position.desc()).label("size")
    ).subquery()
    rows = sql.execute(
        select(sized)
        .where(or_(sized.c.size <= MAX_BYTES, sized.c.size == func.octet_length(sized.c.content)))
        .order_by(sized.c.position)
    )
    return [_shown(row.role, row.content, row.parts) for row in rows]


def name_file(sql: Connection, thread_id: UUID, position: int, file_id: UUID) -> bool:
    """Return whether one of the messages before this position, the newest, names the file."""
    newest = _newest(thread_id, position)
    named = newest.c.parts.contains([{"file_id": str(file_id)}])
    return bool(sql.scalar(select(exists().where(named))))


def _newest(thread_id: UUID, position: int) -> Subquery:
    return (
        select(messages.c.position, messages.c.role, messages.c.content, messages.c.parts)
        .where(
            messages.c.thread_id == thread_id,
            messages.c.position < position,
            messages.c.superseded_at.is_(None),
        )
        .order_by(messages.c.position.desc())
        .limit(MAX_MESSAGES)
        .subquery()
    )


def _shown(role: str, content: str, parts: list[dict[str, Any]] | None) -> Message:
    files = [part for part in parts or () if part.get("type") != "text"]
    return {"role": role, "content": content, **({"files": files} if files else {})}
