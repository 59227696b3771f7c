"""The positions of runs that wait for their thread, and of their messages.

Positions that no conversation reaches: a run that is active does not see what waits, and a list of
messages has it at its end. Each waiting run has a slot of `SLOT` positions, of which its own is
the last, with its messages before it; the order of slots is that in which runs will start. When
a run starts, it moves to the end of the conversation with its messages.
"""

from typing import NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, func, select

from arkloop.shared.storage.tables.runs import FIRST_WAITING, runs
from arkloop.shared.storage.tables.threads import messages

#: The first place in a thread; later ones are behind it or, if a run goes ahead, before it.
MIDDLE = 2**52
SLOT = 1024
#: Messages of one waiting run.
MAX_MESSAGES = 50


class Queue(NamedTuple):
    """The queue of a thread: all that waits, its pending runs, and the last place ever taken."""

    waiting: int
    pending: int
    newest: int | None

    @property
    def end(self) -> int:
        """The position of a run that waits behind all others."""
        return MIDDLE if self.newest is None else _slot_of(self.newest) + SLOT


def queue_of(sql: Connection, thread_id: UUID) -> Queue:
    """Look at the queue of a thread; the caller has the lock of its row."""
    row = sql.exec_driver_sql(
        "SELECT waiting, pending, newest FROM queue_of(%s)", (thread_id,)
    ).one()
    return Queue(*row)


def first(sql: Connection, thread_id: UUID) -> int:
    """Return the position of a run that waits before all others of its thread; as `queue_of`."""
    # Of ended runs and of their messages, too: a place is not taken twice.
    places = [
        select(func.min(table.c.position))
        .where(table.c.thread_id == thread_id, table.c.position >= FIRST_WAITING)
        .scalar_subquery()
        for table in (runs, messages)
    ]
    oldest = sql.scalar(select(func.least(*places)))
    return MIDDLE if oldest is None else _slot_of(oldest) - SLOT


def in_slot(position: int) -> ColumnElement[bool]:
    """Return the condition that a message is one of the run which waits at this position."""
    return (messages.c.position > position - SLOT) & (messages.c.position < position)


def _slot_of(position: int) -> int:
    """Return the position of the run in whose slot this one is."""
    return MIDDLE - (MIDDLE - position) // SLOT * SLOT
