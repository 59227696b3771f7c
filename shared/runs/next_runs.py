"""The runs of threads one after the other, as those who follow a thread meet them."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, Row

from arkloop.shared.storage.arrays import plain_array
from arkloop.shared.storage.sql_files import statement

#: Limits on the messages that are read with a run.
MAX_MESSAGES = 50
MAX_MESSAGE_BYTES = 64 * 1024
_NEXT_RUNS = statement(__package__, "next_runs")
_MESSAGES = statement(__package__, "messages_between")


class Place(NamedTuple):
    """A place in a thread, behind the run at this position."""

    thread_id: UUID
    position: int


class NextRun(NamedTuple):
    """A run, and the newest messages of users since the run before it; some may be left out."""

    row: Row[Any]
    messages: Sequence[Row[Any]]

    @property
    def is_whole(self) -> bool:
        """False if there may be more messages than these."""
        return not self.messages or len(self.messages) == self.messages[0].found < MAX_MESSAGES


def after(sql: Connection, places: Sequence[Place]) -> dict[Place, NextRun]:
    """Return the first run behind each place that has one. Who sees the threads is not checked."""
    given = {
        "thread_ids": plain_array(place.thread_id for place in places),
        "after": plain_array(place.position for place in places),
    }
    rows = sql.exec_driver_sql(_NEXT_RUNS, given).all()
    if not rows:
        return {}
    between = {
        "thread_ids": plain_array(row.thread_id for row in rows),
        "after": plain_array(row.after for row in rows),
        "positions": plain_array(row.position for row in rows),
        "most": MAX_MESSAGES,
        "most_bytes": MAX_MESSAGE_BYTES,
    }
    messages: dict[int, list[Row[Any]]] = defaultdict(list)
    for message in sql.exec_driver_sql(_MESSAGES, between):
        messages[message.number].append(message)
    return {
        Place(row.thread_id, row.after): NextRun(row, messages[number])
        for number, row in enumerate(rows, 1)
    }
