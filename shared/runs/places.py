"""The positions of runs that wait for their thread, and of their messages.

Positions that no conversation reaches: a run that is active does not see what waits, and a list of
messages has it at its end. Each waiting run has a slot of `SLOT` positions, of which its own is
the last, with its messages before it; the order of slots is that in which runs will start. When
a run starts, it moves to the end of the conversation with its messages.
"""

from uuid import UUID

from sqlalchemy import ColumnElement, Connection, func, select

from arkloop.shared.storage.tables.runs import FIRST_WAITING, runs
from arkloop.shared.storage.tables.threads import messages

#: The first place in a thread; later ones are behind it or, if a run goes ahead, before it.
MIDDLE = 2**52
SLOT = 1024
#: Messages of one waiting run.
MAX_MESSAGES = 50


def last(sql: Connection, thread_id: UUID) -> int:
    """Return the position of a run that waits behind all others of its thread.

    The caller has the lock of the thread's row.
    """
    newest = _outermost(sql, thread_id, func.max, func.greatest)
    return MIDDLE if newest is None else _slot_of(newest) + SLOT


def first(sql: Connection, thread_id: UUID) -> int:
    """Return the position of a run that waits before all others of its thread; as `last`."""
    oldest = _outermost(sql, thread_id, func.min, func.least)
    return MIDDLE if oldest is None else _slot_of(oldest) - SLOT


def in_slot(position: int) -> ColumnElement[bool]:
    """Return the condition that a message is one of the run which waits at this position."""
    return (messages.c.position > position - SLOT) & (messages.c.position < position)


def _slot_of(position: int) -> int:
    """Return the position of the run in whose slot this one is."""
    return MIDDLE - (MIDDLE - position) // SLOT * SLOT


def _outermost(sql: Connection, thread_id: UUID, of_one: object, of_both: object) -> int | None:
    # Of ended runs and of their messages, too: a place is not taken twice.
    places = [
        select(of_one(table.c.position))  # type: ignore[operator]
        .where(table.c.thread_id == thread_id, table.c.position >= FIRST_WAITING)
        .scalar_subquery()
        for table in (runs, messages)
    ]
    return sql.scalar(select(of_both(*places)))  # type: ignore[operator]
