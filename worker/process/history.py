"""The history that a run's model sees: the thread's messages and the tool turns of earlier runs.

A thread has no limit, so every read here has one: the newest come first, and what no model's
context could hold is not read.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, func, or_, select

from arkloop.shared.catalog.personas import Persona
from arkloop.shared.claim import Claim
from arkloop.shared.events import event_log
from arkloop.shared.events.stored_events import StoredEvent
from arkloop.shared.events.types import (
    ContextCompacted,
    MessageReset,
    RunCost,
    RunFallback,
    RunLimitReached,
    RunSettingsDropped,
)
from arkloop.shared.runs import claims
from arkloop.shared.storage.arrays import plain_array
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import tool_calls
from arkloop.shared.threads import thread_contexts
from arkloop.worker.agent.context_window import in_force
from arkloop.worker.agent.conversation import (
    TURN_TYPES,
    Counted,
    Entry,
    History,
    Turn,
    counted_of,
    entries_of,
    steered_of,
    turns_of,
)
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.contract.attachments import parts_of
from arkloop.worker.contract.cpu_slices import portions
from arkloop.worker.contract.input_requests import InputRequest
from arkloop.worker.contract.messages import AssistantMessage, Steered, UserMessage

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
    SELECT unnest((SELECT %(run_ids)s::uuid[])) AS run_id,
        unnest((SELECT %(thread_ids)s::uuid[])) AS thread_id,
        unnest((SELECT %(positions)s::bigint[])) AS position
) AS c
CROSS JOIN LATERAL (
    SELECT m.position, m.role, m.partial, m.content, m.parts,
        sum(octet_length(m.content)) OVER (ORDER BY m.position DESC) AS size
    FROM (
        SELECT * FROM messages
        WHERE thread_id = c.thread_id AND position < c.position AND superseded_at IS NULL
            AND steered_into IS NULL
        ORDER BY position DESC LIMIT %(max_messages)s
    ) m
) newest
ORDER BY of_run, position DESC
"""
# Where the truncation point lies within a run, the question that it answers is read, too.
_FIRST = """
SELECT coalesce(max(position), %(position)s) FROM messages
WHERE thread_id = %(thread_id)s AND position < %(position)s AND role = 'user'
    AND superseded_at IS NULL
            AND steered_into IS NULL
"""
# The newest message is read whatever its size: it is what the run is to answer.
_SAID = """
SELECT position, role, partial, content, parts FROM (
    SELECT m.*, sum(octet_length(m.content)) OVER (ORDER BY m.position DESC) AS size
    FROM (
        SELECT * FROM messages
        WHERE thread_id = %(thread_id)s AND position < %(position)s AND position >= %(first)s
            AND superseded_at IS NULL
            AND steered_into IS NULL
        ORDER BY position DESC LIMIT %(max_messages)s
    ) m
) newest
WHERE size <= %(max_bytes)s OR size = octet_length(content)
ORDER BY position DESC
"""
_COUNT = """
SELECT count(*) FROM (
    SELECT FROM messages
    WHERE thread_id = %(thread_id)s AND position >= %(first)s AND position < %(before)s
        AND superseded_at IS NULL
            AND steered_into IS NULL
    LIMIT %(max_counted)s
) older
"""
# By the default frame of a window, `size` includes all the events of the row's own run. Those of
# `lasting` types before the truncation point count for the run's turns after it, too.
_TURNS = """
SELECT position, route_id, model, persona_id, seq, type,
    CASE WHEN size <= %(max_bytes)s THEN payload END AS payload
FROM (
    SELECT newest.position, newest.route_id, newest.model, newest.persona_id,
        e.seq, e.type, e.payload,
        coalesce(sum(octet_length(e.payload)) OVER (ORDER BY newest.position DESC), 0) AS size
    FROM (
        SELECT id, position, route_id, model, persona_id FROM runs
        WHERE thread_id = %(thread_id)s AND position < %(before)s AND position >= %(first)s
            AND superseded_at IS NULL
        ORDER BY position DESC LIMIT %(max_runs)s
    ) newest
    LEFT JOIN run_events e ON e.run_id = newest.id AND e.type = ANY(%(types)s)
        AND (newest.position > %(upto_position)s OR e.seq > %(upto_seq)s
            OR e.type = ANY(%(lasting)s))
) turns
ORDER BY position DESC, seq
"""


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
        return History([_entry(row) for row in reversed(self.said)])


def _entry(row: Row[Any], seq: int = 1) -> Entry:
    if row.role == "user":
        return Entry(row.position, seq, [UserMessage(row.content, parts_of(row.parts))])
    return Entry(row.position, seq, [AssistantMessage(row.content)])


def most_bytes(chain: RouteChain, persona: Persona) -> int:
    """Compute how many bytes of history the models of these routes can use, or summarize."""
    tokens = None if persona.compaction == "summary" else chain.context_tokens
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


def load(
    sql: Connection, claim: Claim, opening: Opening, max_bytes: int, windows: Iterable[int] = (0,)
) -> History:
    """Read the conversation up to the run's place, without what a retry superseded.

    It begins at the earliest truncation point for models with a context of `windows` tokens.
    Messages and tool turns are each read up to `max_bytes`, the newest first.
    """
    contexts = thread_contexts.load(sql, claim.thread_id)
    start = min((in_force(contexts, window) for window in windows), key=lambda one: one.upto)
    question = _first(sql, claim, start)
    said = opening.said if opening.is_whole else _said(sql, claim, question, max_bytes)
    said = [row for row in said if row.position >= start.upto_position or row.position == question]
    oldest = said[-1].position if said else claim.position
    unread = 0 if opening.is_whole else _count(sql, claim, start.upto_position, oldest)
    first = oldest if unread else start.upto_position
    read = _Runs(claim)
    cut = _turns_of_earlier_runs(sql, claim, start, first, max_bytes, read)
    if cut > first:
        said = [row for row in said if row.position >= cut]
        oldest = said[-1].position if said else claim.position
        unread = _count(sql, claim, start.upto_position, oldest)
    entries: dict[int, list[Entry]] = {}
    for some_runs in portions(list(read.turns.items()), PORTION):
        entries.update(
            (position, entries_of(position, turns, read.steered.get(position, ())))
            for position, turns in some_runs
        )
    for some_said in portions(said, PORTION):
        for row in some_said:
            turns = entries.setdefault(row.position, [])
            if row.role == "user" or row.partial or not turns:
                turns.append(_entry(row, _next_seq(row.position, turns, start)))
    found = [entry for position in sorted(entries) for entry in entries[position]]
    if len(found) > 1 and found[0].position < start.upto_position and found[1].is_of_user:
        del found[0]  # the question of what was cut off
    counted = read.newest_count()
    if counted and contexts:
        is_void = thread_contexts.is_moved_since(sql, claim.thread_id, counted.place[0])
        counted = None if is_void else counted
    return History(
        found,
        contexts,
        start.dropped_messages + unread,
        is_cut=unread > 0,
        counted=counted,
    )


def _next_seq(position: int, turns: Sequence[Entry], start: ContextCompacted) -> int:
    """Return the place, after the turns of its run, of what is stored as a message alone."""
    upto = start.upto_seq if position == start.upto_position else 0
    return max(upto, turns[-1].seq if turns else 0) + 1


@dataclass(slots=True)
class _Runs:
    """The turns of earlier runs by position, the newest first."""

    claim: Claim
    turns: dict[int, list[Turn]] = field(default_factory=dict)
    steered: dict[int, list[Steered]] = field(default_factory=dict)
    #: Ids and models of the routes of those with this run's persona.
    routes: dict[int, tuple[str, str]] = field(default_factory=dict)

    def newest_count(self) -> Counted | None:
        """Return the newest count of a vendor's, if its request had this run's prompt and tools."""
        for position, turns in self.turns.items():
            if turns:
                route = self.routes.get(position)
                return counted_of(position, turns, route) if route else None
        return None


def _first(sql: Connection, claim: Claim, start: ContextCompacted) -> int:
    """Return the position of the first message that is read if all are."""
    if not start.upto_position:
        return 0
    values = {"thread_id": claim.thread_id, "position": start.upto_position}
    return int(sql.exec_driver_sql(_FIRST, values).scalar_one())


def _said(sql: Connection, claim: Claim, first: int, max_bytes: int) -> Sequence[Row[Any]]:
    return sql.exec_driver_sql(
        _SAID,
        {
            "thread_id": claim.thread_id,
            "position": claim.position,
            "first": first,
            "max_messages": MAX_MESSAGES,
            "max_bytes": max_bytes,
        },
    ).all()


def _count(sql: Connection, claim: Claim, first: int, before: int) -> int:
    values = {
        "thread_id": claim.thread_id,
        "first": first,
        "before": before,
        "max_counted": MAX_COUNTED,
    }
    return int(sql.exec_driver_sql(_COUNT, values).scalar_one())


def _turns_of_earlier_runs(
    sql: Connection,
    claim: Claim,
    start: ContextCompacted,
    first: int,
    max_bytes: int,
    read: _Runs,
) -> int:
    """Read the turns of runs from the position `first` on, the newest first.

    Returns the position from which on they are all there, at least `first`: those of older runs
    are more than `max_bytes`.
    """
    before, remaining_bytes, max_runs = claim.position, max_bytes, FIRST_PAGE
    while True:
        values = {
            "thread_id": claim.thread_id,
            "before": before,
            "first": first,
            "upto_position": start.upto_position,
            "upto_seq": start.upto_seq,
            "max_runs": max_runs,
            "types": list(TURN_TYPES),
            "lasting": [RunFallback.type, RunLimitReached.type, RunSettingsDropped.type],
            "max_bytes": remaining_bytes,
        }
        rows = sql.exec_driver_sql(_TURNS, values).all()
        page = [(position, list(some)) for position, some in groupby(rows, lambda row: row[0])]
        # A run can have megabytes of results, a short page too.
        for some_runs in portions(page, FIRST_PAGE, always_in_turn=True):
            for position, events in some_runs:
                # The page is a run without a finished turn where its type is null.
                stored = [StoredEvent(*row[4:]) for row in events if row.type is not None]
                if any(event.payload is None for event in stored):
                    return int(position) + 1
                remaining_bytes -= sum(event.size for event in stored)
                read.turns[position] = turns_of(stored)
                if steered := steered_of(stored):
                    read.steered[position] = steered
                if events[0].persona_id == claim.persona_id:
                    read.routes[position] = events[0].route_id, events[0].model
        before = page[-1][0] if page else before
        if len(page) < max_runs:
            return first
        max_runs = min(2 * max_runs, LONGEST_PAGE)


def take_done_calls(sql: Connection, run_id: UUID, turn: Turn) -> None:
    """Give the turn what its ledger knows of calls that have no event yet."""
    names = {call.id: call.name for call in turn.calls if call.id not in turn.results}
    rows = sql.execute(
        select(tool_calls).where(
            tool_calls.c.run_id == run_id,
            tool_calls.c.tool_call_id.in_(names),
            or_(
                tool_calls.c.done_at.is_not(None),
                tool_calls.c.accepted_at.is_not(None),
                tool_calls.c.input_request.is_not(None),
            ),
        )
    )
    for row in rows:
        if row.done_at is None and row.input_request is not None:
            turn.input_requests[row.tool_call_id] = InputRequest.from_text(row.input_request)
            continue
        if row.done_at is None:
            turn.accepted.add(row.tool_call_id)
            continue
        name = names[row.tool_call_id]
        turn.ledger_results[row.tool_call_id] = claims.result_of(row, name)


def written_bytes(sql: Connection, run_id: UUID) -> int:
    """Sum the size of all events that the run has written so far, and of whole outputs."""
    events = func.coalesce(func.sum(func.octet_length(run_events.c.payload)), 0)
    outputs = func.coalesce(func.sum(func.octet_length(tool_calls.c.whole_output)), 0)
    sums = (
        select(events).where(run_events.c.run_id == run_id).scalar_subquery()
        + select(outputs).where(tool_calls.c.run_id == run_id).scalar_subquery()
    )
    return int(sql.scalar(select(sums)) or 0)


#: Of a run's own events: what its next attempt goes by, without the text of finished turns.
_OWN_TYPES = (*TURN_TYPES, RunCost.type, MessageReset.type)


def own_events(sql: Connection, run_id: UUID) -> list[StoredEvent]:
    """Read the run's events so far, without the deltas of finished or void turns."""
    kept = select(run_events.c.seq, run_events.c.type, run_events.c.payload).where(
        run_events.c.run_id == run_id, run_events.c.type.in_(_OWN_TYPES)
    )
    found = [StoredEvent(*row) for row in sql.execute(kept)]
    return sorted([*found, *event_log.open_events(sql, run_id)])
