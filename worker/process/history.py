"""The history that a run's model sees: the thread's messages and the tool turns of earlier runs.

A thread has no limit, so every read here has one: the newest come first, and what no model's
context could hold is not read.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Connection, Row, func, select

from shared.claim import Claim
from shared.events import event_log
from shared.events.types import (
    MessageReset,
    RunCost,
    RunFallback,
    RunLimitReached,
    RunSettingsDropped,
    StoredEvent,
    ToolResult,
)
from shared.storage.arrays import plain_array
from shared.storage.tables.events import run_events
from shared.storage.tables.runs import tool_calls
from worker.agent.conversation import TURN_TYPES, Counted, Turn, messages_of, turns_of
from worker.agent.route_chain import RouteChain
from worker.contract.attachments import parts_of
from worker.contract.cpu_slices import cpu_slice
from worker.contract.messages import AssistantMessage, Message, UserMessage, state_text

#: Of a thread's messages, and of the tool turns of its runs; no model's context holds as much.
MAX_BYTES = 8 * 1024 * 1024
MAX_MESSAGES = 4_000
#: A token of most texts has four bytes; hardly any text has more than this.
MAX_BYTES_PER_TOKEN = 8
#: The tool turns of earlier runs are read in pages, each twice as long as the one before.
FIRST_PAGE, LONGEST_PAGE = 20, 320
#: Between two portions of this length other runs of the process get on.
PORTION = 100
#: What is read of each thread for a group of runs that start at the same time.
OPENING_MESSAGES = 20
OPENING_BYTES = 65_536
#: Older messages than these are not counted one by one: `unread` then says this number.
MAX_COUNTED = 100_000

# The size of a long text is known without reading it.
_OPENING = """
SELECT c.run_id AS of_run, newest.position, newest.role, newest.partial, newest.size,
    CASE WHEN newest.size <= %(max_bytes)s THEN newest.content END AS content,
    CASE WHEN newest.size <= %(max_bytes)s THEN newest.parts END AS parts
FROM (
    SELECT unnest(%(run_ids)s::uuid[]) AS run_id,
        unnest(%(thread_ids)s::uuid[]) AS thread_id,
        unnest(%(positions)s::bigint[]) AS position
) AS c
CROSS JOIN LATERAL (
    SELECT m.position, m.role, m.partial, m.content, m.parts,
        sum(octet_length(m.content)) OVER (ORDER BY m.position DESC) AS size
    FROM (
        SELECT * FROM messages
        WHERE thread_id = c.thread_id AND position < c.position AND superseded_at IS NULL
        ORDER BY position DESC LIMIT %(max_messages)s
    ) m
) newest
ORDER BY of_run, position DESC
"""
# The newest message is read whatever its size: it is what the run is to answer.
_SAID = """
SELECT position, role, partial, content, parts FROM (
    SELECT m.*, sum(octet_length(m.content)) OVER (ORDER BY m.position DESC) AS size
    FROM (
        SELECT * FROM messages
        WHERE thread_id = %(thread_id)s AND position < %(position)s AND superseded_at IS NULL
        ORDER BY position DESC LIMIT %(max_messages)s
    ) m
) newest
WHERE size <= %(max_bytes)s OR size = octet_length(content)
ORDER BY position DESC
"""
_COUNT = """
SELECT count(*) FROM (
    SELECT FROM messages
    WHERE thread_id = %(thread_id)s AND position < %(before)s AND superseded_at IS NULL
    LIMIT %(max_counted)s
) older
"""
# By the default frame of a window, `size` includes all the events of the row's own run.
_TURNS = """
SELECT position, seq, type, CASE WHEN size <= %(max_bytes)s THEN payload END AS payload
FROM (
    SELECT newest.position, e.seq, e.type, e.payload,
        coalesce(sum(octet_length(e.payload)) OVER (ORDER BY newest.position DESC), 0) AS size
    FROM (
        SELECT id, position FROM runs
        WHERE thread_id = %(thread_id)s AND position < %(before)s AND position >= %(first)s
            AND superseded_at IS NULL
        ORDER BY position DESC LIMIT %(max_runs)s
    ) newest
    LEFT JOIN run_events e ON e.run_id = newest.id AND e.type = ANY(%(types)s)
) turns
ORDER BY position DESC, seq
"""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class History:
    """The conversation up to a run's place; the `unread` messages before it are too many."""

    messages: list[Message] = field(default_factory=list)
    unread: int = 0
    #: The newest request whose tokens a vendor has counted, with the number of its messages.
    counted: Counted | None = None
    counted_messages: int = 0

    @property
    def size(self) -> int:
        """Bytes of memory that its texts take, about."""
        return sum(map(_size_of, self.messages))


def _size_of(message: Message) -> int:
    size = sys.getsizeof(message.content)
    if isinstance(message, AssistantMessage):
        size += len(state_text(message.state))
        size += sum(len(json.dumps(call.arguments)) for call in message.tool_calls)
    return size


@dataclass(frozen=True, slots=True)
class Opening:
    """The newest messages of a run's thread, newest first; `is_whole` if there are no others."""

    said: Sequence[Row[Any]]
    is_whole: bool

    def history(self, claim: Claim) -> History | None:
        """Return the history if the run is its thread's first; None if there is more to read."""
        # Every message and every run has a place of its own: where people's messages fill them
        # all, there was no run before.
        is_first = len(self.said) == claim.position - 1 and all(
            row.role == "user" for row in self.said
        )
        if not self.is_whole or not is_first:
            return None
        return History([_user_message(row) for row in reversed(self.said)])


def _user_message(row: Row[Any]) -> UserMessage:
    return UserMessage(row.content, parts_of(row.parts))


def most_bytes(chain: RouteChain) -> int:
    """Compute how many bytes of history the models of these routes can use."""
    tokens = chain.context_tokens
    return MAX_BYTES if tokens is None else min(tokens * MAX_BYTES_PER_TOKEN, MAX_BYTES)


def load_openings(sql: Connection, claims: Sequence[Claim]) -> list[Opening]:
    """Read the newest messages of each claim's thread: a small, bounded part of each."""
    said: dict[UUID, list[Row[Any]]] = defaultdict(list)
    rows = sql.exec_driver_sql(
        _OPENING,
        {
            "run_ids": plain_array(claim.run_id for claim in claims),
            "thread_ids": plain_array(claim.thread_id for claim in claims),
            "positions": plain_array(claim.position for claim in claims),
            "max_messages": OPENING_MESSAGES + 1,
            "max_bytes": OPENING_BYTES,
        },
    )
    for row in rows:
        said[row.of_run].append(row)
    return [_opening(said[claim.run_id]) for claim in claims]


def _opening(said: Sequence[Row[Any]]) -> Opening:
    is_whole = len(said) <= OPENING_MESSAGES and all(row.content is not None for row in said)
    return Opening(said, is_whole)


def load(sql: Connection, claim: Claim, opening: Opening, max_bytes: int) -> History:
    """Read the conversation up to the run's place, without what a retry superseded.

    Messages and tool turns are each read up to `max_bytes`, the newest first.
    """
    said = opening.said if opening.is_whole else _said(sql, claim, max_bytes)
    first = 0 if opening.is_whole or not said else said[-1].position
    runs: dict[int, list[Turn]] = {}
    cut = _turns_of_earlier_runs(sql, claim, first, max_bytes, runs)
    places: dict[int, list[Message]] = {}
    for some_runs in _portions(list(runs.items())):
        places.update((position, messages_of(turns)) for position, turns in some_runs)
    if cut > first or not opening.is_whole:
        said = [row for row in said if row.position >= cut]
        first = said[-1].position if said else claim.position
        unread = _count_before(sql, claim, first)
    else:
        unread = 0
    for some_said in _portions(said):
        for message in some_said:
            if message.role == "user":
                places[message.position] = [_user_message(message)]
            elif message.partial or not places.get(message.position):
                places.setdefault(message.position, []).append(AssistantMessage(message.content))
    messages = [message for position in sorted(places) for message in places[position]]
    return History(messages, unread, *_newest_counted(runs, places))


def _portions(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut what may be long, and let other runs get on before every portion but the first."""
    for start in range(0, len(items), PORTION):
        with cpu_slice() if start else nullcontext():
            yield items[start : start + PORTION]


def _newest_counted(
    runs: dict[int, list[Turn]], places: dict[int, list[Message]]
) -> tuple[Counted | None, int]:
    """Find the newest counted request of earlier runs, and the number of messages before it."""
    for position in sorted(runs, reverse=True):
        turns = runs[position]
        for number in reversed(range(len(turns))):
            if (counted := turns[number].counted) is not None:
                before = sum(len(said) for at, said in places.items() if at < position)
                return counted, before + len(messages_of(turns[:number]))
    return None, 0


def _said(sql: Connection, claim: Claim, max_bytes: int) -> Sequence[Row[Any]]:
    return sql.exec_driver_sql(
        _SAID,
        {
            "thread_id": claim.thread_id,
            "position": claim.position,
            "max_messages": MAX_MESSAGES,
            "max_bytes": max_bytes,
        },
    ).all()


def _count_before(sql: Connection, claim: Claim, position: int) -> int:
    values = {"thread_id": claim.thread_id, "before": position, "max_counted": MAX_COUNTED}
    return int(sql.exec_driver_sql(_COUNT, values).scalar_one())


def _turns_of_earlier_runs(
    sql: Connection, claim: Claim, first: int, max_bytes: int, runs: dict[int, list[Turn]]
) -> int:
    """Put the turns of runs into `runs`, by their position in the thread, the newest first.

    Returns the position from which on they are all there, at least `first`: those of older runs
    are more than `max_bytes`.
    """
    before, room, max_runs = claim.position, max_bytes, FIRST_PAGE
    while True:
        page = _page_of_runs(sql, claim, first, before, room, max_runs)
        for start in range(0, len(page), FIRST_PAGE):
            # Decoding is long work where turns are many or large.
            with cpu_slice():
                for position, stored in page[start : start + FIRST_PAGE]:
                    if stored is None:
                        return position + 1
                    room -= sum(event.size for event in stored)
                    runs[position] = turns_of(stored)
        before = page[-1][0] if page else before
        if len(page) < max_runs:
            return first
        max_runs = min(2 * max_runs, LONGEST_PAGE)


def _page_of_runs(
    sql: Connection, claim: Claim, first: int, before: int, room: int, max_runs: int
) -> list[tuple[int, list[StoredEvent] | None]]:
    """Read the next older runs: position and finished turns; None for turns of more than `room`."""
    rows = sql.exec_driver_sql(
        _TURNS,
        {
            "thread_id": claim.thread_id,
            "before": before,
            "first": first,
            "max_runs": max_runs,
            "types": list(TURN_TYPES),
            "max_bytes": room,
        },
    )
    found: dict[int, list[StoredEvent] | None] = {}
    for position, seq, kind, payload in rows:
        stored = found.setdefault(position, [])
        if kind is None:
            continue  # a run without a finished turn
        if payload is None:
            found[position] = None
        elif stored is not None:
            stored.append(StoredEvent(seq, kind, payload))
    return list(found.items())


def take_done_calls(sql: Connection, run_id: UUID, turn: Turn) -> None:
    """Give the turn what its ledger knows of calls that have no event yet."""
    names = {call.id: call.name for call in turn.calls if call.id not in turn.results}
    rows = sql.execute(
        select(tool_calls).where(
            tool_calls.c.run_id == run_id,
            tool_calls.c.tool_call_id.in_(names),
            tool_calls.c.done_at.is_not(None),
        )
    )
    for row in rows:
        turn.ledger_results[row.tool_call_id] = ToolResult(
            row.tool_call_id,
            names[row.tool_call_id],
            row.output,
            row.is_error,
            row.duration_ms,
        )


def written_bytes(sql: Connection, run_id: UUID) -> int:
    """Sum the size of all events that the run has written so far."""
    size = func.coalesce(func.sum(func.octet_length(run_events.c.payload)), 0)
    return int(sql.scalar(select(size).where(run_events.c.run_id == run_id)) or 0)


#: Of a run's own events: what its next attempt goes by, without the text of finished turns.
_OWN_TYPES = (
    *TURN_TYPES,
    *(kind.type for kind in (RunFallback, RunSettingsDropped, RunLimitReached)),
    *(kind.type for kind in (RunCost, MessageReset)),
)


def own_events(sql: Connection, run_id: UUID) -> list[StoredEvent]:
    """Read the run's events so far, without the deltas of finished or void turns."""
    kept = select(run_events.c.seq, run_events.c.type, run_events.c.payload).where(
        run_events.c.run_id == run_id, run_events.c.type.in_(_OWN_TYPES)
    )
    found = [StoredEvent(*row) for row in sql.execute(kept)]
    return sorted([*found, *event_log.open_events(sql, run_id)])
