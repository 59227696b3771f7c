"""What a run's model has seen before: the thread's messages and the tool turns of earlier runs."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, select

from shared.claims import Claim
from shared.events import StoredEvent, ToolResult
from shared.tables import run_events, runs, tool_calls
from worker.conversation import TURN_TYPES, Turn, messages_of, turns_of
from worker.messages import AssistantMessage, Message, UserMessage

_SAID = """
SELECT c.run_id AS of_run, m.position, m.role, m.content, m.partial
FROM unnest(%(run_ids)s::uuid[], %(thread_ids)s::uuid[], %(positions)s::bigint[])
     AS c (run_id, thread_id, position)
JOIN messages m ON m.thread_id = c.thread_id AND m.position < c.position
WHERE m.superseded_at IS NULL
ORDER BY c.run_id, m.position
"""


def load(sql: Connection, claims: Sequence[Claim]) -> list[list[Message]]:
    """Of each claim: the conversation up to the run's place, without what a retry superseded."""
    said: dict[UUID, list[Row[Any]]] = defaultdict(list)
    rows = sql.exec_driver_sql(
        _SAID,
        {
            "run_ids": [claim.run_id for claim in claims],
            "thread_ids": [claim.thread_id for claim in claims],
            "positions": [claim.position for claim in claims],
        },
    )
    for row in rows:
        said[row.of_run].append(row)
    return [_conversation(sql, claim, said[claim.run_id]) for claim in claims]


def _conversation(sql: Connection, claim: Claim, said: Sequence[Row[Any]]) -> list[Message]:
    # Every message and every run has a place of its own: where people's messages fill them all,
    # there was no run before.
    is_first = len(said) == claim.position - 1 and all(row.role == "user" for row in said)
    places = {} if is_first else _turns_of_earlier_runs(sql, claim)
    for message in said:
        if message.role == "user":
            places[message.position] = [UserMessage(message.content)]
        elif message.partial or not places.get(message.position):
            places.setdefault(message.position, []).append(AssistantMessage(message.content))
    return [message for position in sorted(places) for message in places[position]]


def _turns_of_earlier_runs(sql: Connection, claim: Claim) -> dict[int, list[Message]]:
    """Model messages by the run's position in the thread."""
    rows = sql.execute(
        select(runs.c.position, run_events.c.seq, run_events.c.type, run_events.c.payload)
        .join(run_events, run_events.c.run_id == runs.c.id)
        .where(
            runs.c.thread_id == claim.thread_id,
            runs.c.position < claim.position,
            runs.c.superseded_at.is_(None),
            run_events.c.type.in_(TURN_TYPES),
        )
        .order_by(runs.c.position, run_events.c.seq)
    )
    by_position: dict[int, list[StoredEvent]] = defaultdict(list)
    for position, *event in rows:
        by_position[position].append(StoredEvent(*event))
    return {position: messages_of(turns_of(events)) for position, events in by_position.items()}


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
