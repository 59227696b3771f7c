"""The ends of runs that an agent worker holds: by its agent, by a limit, by a cancel."""

from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import delete, or_, select

from arkloop.shared import ids
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.events import event_log, types
from arkloop.shared.events.plain import clean
from arkloop.shared.events.stored_events import StoredEvent
from arkloop.shared.events.types import Event, RunError
from arkloop.shared.events.usage import Usage
from arkloop.shared.runs import approved_calls, endings, limits_reached
from arkloop.shared.runs.ended import Ended
from arkloop.shared.runs.endings import Ending, TakenOver
from arkloop.shared.runs.held_runs import HeldRun, Written
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.transitions import recorded_totals
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import agent_runs

FAILED = "agent.failed"
#: The codes with which an agent can fail its run. Every other one is the service's, which writes
#: another event before an `output.invalid`.
CODES = (FAILED, "output.invalid")
_NO_RESULT = "The run reached its limit before this call had a result."


@dataclass(frozen=True, slots=True, kw_only=True)
class Complete:
    """The final answer; `output` is what `content` means in a run with an output schema."""

    content: str
    output: dict[str, Any] | None = None


def lands(persona: Persona) -> bool:
    """Return whether runs of the persona end at a limit as ones that have to answer."""
    return persona.on_limit == "answer"


def stop(
    run: HeldRun,
    persona: Persona,
    error: RunError,
    answer: Complete | None = None,
    text: str = "",
) -> Written:
    """End a run at a limit: it fails, or lands where its persona says so.

    The `answer` is what its agent has just given, and `text` that of a turn which is not stored.
    Without an answer, text is no output of a run that must have an object.
    """
    reason = limits_reached.STOP_REASONS.get(error.code)
    if not lands(persona) or reason is None:
        return end(run, RunState.FAILED, error)
    if persona.output_schema is not None and answer is None:
        _cut_off(run, error, reason)
        missing = RunError("output.invalid", limits_reached.no_answer(reason), False)
        return end(run, RunState.FAILED, missing)
    return _land(run, error, answer or (Complete(content=text) if text.strip() else None))


def _cut_off(run: HeldRun, limit: RunError, reason: str) -> None:
    """End the calls without a result, and note the limit."""
    calls = approved_calls.all_open(run)
    run.store(
        *(types.ToolResult(id_, call["name"], _NO_RESULT, True, 0) for id_, call in calls.items()),
        types.RunLimitReached(reason, limit.message),
    )


def _land(run: HeldRun, limit: RunError, answer: Complete | None = None) -> Written:
    """Complete a run at this limit, with the answer or else its text so far."""
    reason = limits_reached.STOP_REASONS[limit.code]
    _cut_off(run, limit, reason)
    if answer is None:
        text = event_log.text_of(event_log.open_events(run.tx.sql, run.id))
        last = None if text.strip() else _said_last(run)
        answer = Complete(content=text if last is None else last.content)
        if not answer.content.strip():
            answer = Complete(content=limits_reached.no_answer(reason))
            run.store(types.MessageDelta(answer.content))
    return end(run, RunState.COMPLETED, answer=answer, stop_reason=reason)


def end(
    run: HeldRun,
    state: RunState,
    error: RunError | None = None,
    answer: Complete | None = None,
    stop_reason: str = "stop",
) -> Written:
    """End a run with the agent's answer, with an error, or as cancelled."""
    tx, totals = run.tx, recorded_totals(run.tx.sql, run.id)
    message: tuple[UUID, str] | None = None
    closing: list[Event]
    if answer is not None:
        content = clean(answer.content)
        there = _last_turn(run, content)
        message = (there or ids.new_id(), content) if content else None
        shown = str(message[0]) if message else None
        closing = [
            types.RunCompleted(shown, totals.usage, totals.cost_usd, stop_reason, answer.output)
        ]
        if message and there is None:
            closing.insert(0, types.MessageCompleted(str(message[0]), content, Usage()))
    else:
        text = event_log.text_of(event_log.open_events(tx.sql, run.id))
        message = (ids.new_id(), text) if text else None
        if error is not None:
            closing = [types.RunFailed(error, totals.usage, totals.cost_usd)]
        else:
            requested = types.RunCancelRequested(str(run.row["cancel_requested_by"]))
            by = run.row["superseded_by"]
            why = (by and str(by), run.row["cancel_reason"])
            closing = [requested, types.RunCancelled(totals.usage, totals.cost_usd, *why)]
    ending = Ending(
        claim=TakenOver(run.id, run.row["org_id"], run.row["fence"], run.row["parent_run_id"]),
        state=state,
        stored=run.number(closing),
        totals=totals.after(closing),
        message=message,
        stop_reason=stop_reason if answer is not None else None,
        output_is_json=answer is not None and answer.output is not None,
        error=error,
        has_reservation=True,
    )
    outcome = endings.end_with_reservation(tx, ending)
    assert outcome is endings.Outcome.ENDED, outcome  # its row is locked
    tx.after_commit.append(Ended.of(run.row, state, None if error is None else error.code))
    tx.sql.execute(delete(agent_runs).where(agent_runs.c.run_id == run.id))
    return run.written(state)


def is_end_by_service(event: StoredEvent) -> bool:
    """Return whether the service ends a run with this event first: by a cancel, or at a limit."""
    data = event_log.data_of(event.payload)
    if event.type == types.ToolResult.type:
        return bool(data["output"] == _NO_RESULT)
    if event.type == types.RunFailed.type:
        return bool(data["error"]["code"] not in CODES)
    return event.type in (types.RunCancelRequested.type, types.RunLimitReached.type)


def _last_turn(run: HeldRun, content: str) -> UUID | None:
    """Return the message id of the run's last turn if the final answer is all of it.

    Text after that turn makes another one, unless it is void or white space alone.
    """
    if event_log.text_of(event_log.open_events(run.tx.sql, run.id)).strip():
        return None
    last = _said_last(run)
    return last.message_id if last is not None and last.content == content else None


class _Said(NamedTuple):
    message_id: UUID
    content: str


def _said_last(run: HeldRun) -> _Said | None:
    """Return the run's last turn with text; None if calls follow it, and without one.

    Results of calls of the turns before may follow it: those that the agent has left get one at
    the run's end.
    """
    # In a string the quotes would be escaped.
    has_text = run_events.c.payload.not_like('%"content":""%')
    is_turn = (run_events.c.type == types.MessageCompleted.type) & has_text
    last = run.tx.sql.execute(
        select(run_events.c.type, run_events.c.payload)
        .where(
            run_events.c.run_id == run.id,
            or_(run_events.c.type == types.ToolCallRequested.type, is_turn),
        )
        .order_by(run_events.c.seq.desc())
        .limit(1)
    ).one_or_none()
    if last is None or last.type != types.MessageCompleted.type:
        return None
    turn = event_log.data_of(last.payload)
    return _Said(UUID(turn["message_id"]), turn["content"])
