"""What a run's model has seen before: the thread's messages and the tool turns of earlier runs."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, select

from shared.claims import Claim
from shared.events import StoredEvent, ToolResult
from shared.tables import run_events, runs, tool_calls
from worker.conversation import TURN_TYPES, Turn, messages_of, turns_of
from worker.messages import AssistantMessage, Message, UserMessage

#: Of a thread's messages, and of its runs' turns; no model's context holds as much.
MAX_BYTES = 8 * 1024 * 1024
RUNS_AT_ONCE = 20

# The size of a long text is known without reading it.
_SAID = """
SELECT * FROM (
    SELECT c.run_id AS of_run, m.position, m.role, m.content, m.partial,
        sum(octet_length(m.content)) OVER latest AS size,
        count(*) OVER (PARTITION BY c.run_id) AS messages
    FROM unnest(%(run_ids)s::uuid[], %(thread_ids)s::uuid[], %(positions)s::bigint[])
         AS c (run_id, thread_id, position)
    JOIN messages m ON m.thread_id = c.thread_id AND m.position < c.position
    WHERE m.superseded_at IS NULL
    WINDOW latest AS (PARTITION BY c.run_id ORDER BY m.position DESC)
) said
WHERE size <= %(max_bytes)s OR size = octet_length(content)
ORDER BY of_run, position
"""


@dataclass(frozen=True, slots=True)
class History:
    """The conversation up to a run's place; the `unread` messages before it are too many."""

    messages: list[Message] = field(default_factory=list)
    unread: int = 0


def load(sql: Connection, claims: Sequence[Claim]) -> list[History]:
    """Of each claim: the conversation up to the run's place, without what a retry superseded."""
    said: dict[UUID, list[Row[Any]]] = defaultdict(list)
    rows = sql.exec_driver_sql(
        _SAID,
        {
            "run_ids": [claim.run_id for claim in claims],
            "thread_ids": [claim.thread_id for claim in claims],
            "positions": [claim.position for claim in claims],
            "max_bytes": MAX_BYTES,
        },
    )
    for row in rows:
        said[row.of_run].append(row)
    return [_conversation(sql, claim, said[claim.run_id]) for claim in claims]


def _conversation(sql: Connection, claim: Claim, said: Sequence[Row[Any]]) -> History:
    # Every message and every run has a place of its own: where people's messages fill them all,
    # there was no run before.
    is_first = len(said) == claim.position - 1 and all(row.role == "user" for row in said)
    total = said[0].messages if said else 0
    first = said[0].position if len(said) < total else 0
    places: dict[int, list[Message]] = {}
    if not is_first:
        first = _turns_of_earlier_runs(sql, claim, first, places)
        said = [row for row in said if row.position >= first]
    for message in said:
        if message.role == "user":
            places[message.position] = [UserMessage(message.content)]
        elif message.partial or not places.get(message.position):
            places.setdefault(message.position, []).append(AssistantMessage(message.content))
    messages = [message for position in sorted(places) for message in places[position]]
    return History(messages, total - len(said))


def _turns_of_earlier_runs(
    sql: Connection, claim: Claim, first: int, places: dict[int, list[Message]]
) -> int:
    """Put model messages into `places`, by their run's position in the thread, the newest first.

    Returns the position from which on they are all there, at least `first`: older ones are more
    than any model's context holds.
    """
    before, size = claim.position, 0
    while True:
        newest = (
            select(runs.c.id, runs.c.position)
            .where(
                runs.c.thread_id == claim.thread_id,
                runs.c.position < before,
                runs.c.position >= first,
                runs.c.superseded_at.is_(None),
            )
            .order_by(runs.c.position.desc())
            .limit(RUNS_AT_ONCE)
            .subquery()
        )
        rows = sql.execute(
            select(newest.c.position, run_events.c.seq, run_events.c.type, run_events.c.payload)
            .outerjoin(
                run_events,
                (run_events.c.run_id == newest.c.id) & run_events.c.type.in_(TURN_TYPES),
            )
            .order_by(newest.c.position.desc(), run_events.c.seq)
        )
        by_position: dict[int, list[StoredEvent]] = defaultdict(list)
        for position, *event in rows:
            by_position[position].append(StoredEvent(*event))
        for position, stored in by_position.items():
            stored = [event for event in stored if event.type is not None]
            size += sum(event.size for event in stored)
            if size > MAX_BYTES:
                return before
            places[position] = messages_of(turns_of(stored))
            before = position
        if len(by_position) < RUNS_AT_ONCE:
            return first


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
        turn.done[row.tool_call_id] = ToolResult(
            row.tool_call_id,
            names[row.tool_call_id],
            row.output,
            row.is_error,
            row.duration_ms,
        )


def own_events(sql: Connection, run_id: UUID) -> list[StoredEvent]:
    """Everything the run has written so far."""
    rows = sql.execute(
        select(run_events.c.seq, run_events.c.type, run_events.c.payload)
        .where(run_events.c.run_id == run_id)
        .order_by(run_events.c.seq)
    )
    return [StoredEvent(*row) for row in rows]
