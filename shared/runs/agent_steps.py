"""The limits on the writes of an agent worker: a turn with calls beyond one is not stored.

It is beyond the limit of steps, or behind the cost that a budget does not allow. Its text stays
what the run has streamed, as in a run of an agent in the service, so that the run can land with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sqlalchemy import Connection, func, select

from arkloop.shared.catalog.personas import Persona
from arkloop.shared.events import event_log, types
from arkloop.shared.events.types import Event, RunError
from arkloop.shared.runs.agent_costs import AgentCost
from arkloop.shared.runs.held_runs import HeldRun
from arkloop.shared.storage.tables.events import run_events

Events = Sequence[Event | AgentCost]


@dataclass(frozen=True, slots=True)
class BeyondLimit:
    """The rest of a write whose calls belong to a turn beyond the limit, and that turn's text."""

    error: RunError
    events: Events
    text: str


def check(run: HeldRun, persona: Persona, events: Events, *, delegates: bool) -> BeyondLimit | None:
    """Return what is to be stored of a write instead of its events; None: all of them.

    The write has these events, and with `delegates` calls after them.
    """
    if not delegates and not any(isinstance(event, types.ToolCallRequested) for event in events):
        return None
    steps = _steps(run.tx.sql, run, run.last_seq + 1)
    found = _first_beyond(persona.max_steps - steps, events, delegates=delegates)
    if found is None:
        return None
    message = f"The run reached its persona's limit of {persona.max_steps} steps."
    return _beyond(run, events, found, RunError("run.max_steps", message, False))


def behind_cost(
    run: HeldRun, events: Events, error: RunError, *, delegates: bool
) -> BeyondLimit | None:
    """Return what is to be stored of the events behind a cost that ends the run by this error.

    None: all of them. Otherwise as `check`.
    """
    found = _first_behind(events, delegates=delegates)
    return None if found is None else _beyond(run, events, found, error)


def parts(events: Events, *, delegates: bool) -> list[Events]:
    """Split the events after each cost that is followed by a call, so that a budget can end the run
    before the call is stored.
    """
    cuts, behind_cost = [0], None
    for index, event in enumerate(events):
        if isinstance(event, AgentCost):
            behind_cost = index + 1
        elif isinstance(event, types.ToolCallRequested) and behind_cost is not None:
            cuts.append(behind_cost)
            behind_cost = None
    if delegates and behind_cost is not None:
        cuts.append(behind_cost)
    return [events[first:last] for first, last in pairwise([*cuts, len(events)])]


def _beyond(run: HeldRun, events: Events, found: int, error: RunError) -> BeyondLimit:
    """Leave out the turn with this index; its text counts as streamed."""
    turn = events[found] if found < len(events) else None
    kept, text = _without(events, found), ""
    if isinstance(turn, types.MessageCompleted):
        text = turn.content
        if text and not _is_streamed(run, events[:found]):
            kept.insert(found, types.MessageDelta(text))
    return BeyondLimit(error, kept, text)


def _is_streamed(run: HeldRun, before: Events) -> bool:
    """Return whether text of the turn that follows these events has been streamed."""
    stored = event_log.open_events(run.tx.sql, run.id)
    text = [event.seq for event in stored if event.type == types.MessageDelta.type]
    for seq, event in enumerate(before, run.last_seq + 1):
        if isinstance(event, types.MessageDelta):
            text.append(seq)
        elif isinstance(event, types.MessageCompleted):
            text.clear()
        elif isinstance(event, types.MessageReset):
            text = [one for one in text if one < event.from_seq]
    return bool(text)


def stored_of(
    run: HeldRun, persona: Persona, seq: int, events: Events, *, delegates: bool
) -> list[Events]:
    """Return what may have been stored of a write from the number `seq` on, but for text, if a
    turn of it was beyond a limit.
    """
    steps = _steps(run.tx.sql, run, seq)
    found = _first_beyond(persona.max_steps - steps, events, delegates=delegates)
    stored: list[Events] = [] if found is None else [_without(events, found)]
    first = 0
    for part in parts(events, delegates=delegates)[:-1]:
        first += len(part)
        found = _first_behind(events[first:], delegates=delegates)
        if found is not None:
            stored.append(_without(events, first + found))
    return stored


def _steps(sql: Connection, run: HeldRun, before_seq: int) -> int:
    steps = sql.scalar(
        select(func.count()).where(
            run_events.c.run_id == run.id,
            run_events.c.seq < before_seq,
            run_events.c.type == types.MessageCompleted.type,
        )
    )
    return steps or 0


def _first_beyond(left: int, events: Events, *, delegates: bool) -> int | None:
    """Return the index of the turn that has calls after `left` turns, or else of its first call."""
    turn: int | None = None
    for index, event in enumerate(events):
        if isinstance(event, types.MessageCompleted):
            left, turn = left - 1, index
        elif isinstance(event, types.ToolCallRequested) and left < 0:
            return index if turn is None else turn
    if not delegates or left >= 0:
        return None
    return len(events) if turn is None else turn


def _first_behind(events: Events, *, delegates: bool) -> int | None:
    """Return the index of the first turn that has calls, or else of its first call."""
    found = _first_beyond(-1, events, delegates=delegates)
    return None if found == len(events) else found


def _without(events: Events, found: int) -> list[Event | AgentCost]:
    """Leave out the turn and its calls; costs, and results of other calls, count all the same."""
    rest = events[found:]
    dropped = {one.tool_call_id for one in rest if isinstance(one, types.ToolCallRequested)}
    kept = [
        event
        for event in rest
        if isinstance(event, AgentCost)
        or (isinstance(event, types.ToolResult) and event.tool_call_id not in dropped)
    ]
    return [*events[:found], *kept]
