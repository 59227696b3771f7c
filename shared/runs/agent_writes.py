"""The writes of agent workers to the runs that they hold: each carries the fence of its claim.

The agent numbers its events itself, from the number that it got with the run. So a request that is
repeated because its response was lost changes nothing, and a hole is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import func, update

from arkloop.shared import ids, times
from arkloop.shared.agents import call_approvals
from arkloop.shared.agents.agent_run import DelegatedTask
from arkloop.shared.catalog.catalog import Catalog
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.errors import OutdatedFence, SequenceConflict
from arkloop.shared.events import event_log, types
from arkloop.shared.events.stored_events import StoredEvent
from arkloop.shared.events.types import Event, RunError
from arkloop.shared.runs import (
    agent_costs,
    agent_delegation,
    agent_endings,
    agent_events,
    agent_limits,
    agent_queue,
    agent_steps,
    approved_calls,
    checkpoints,
    held_runs,
    sub_runs,
)
from arkloop.shared.runs.agent_claims import persona_of
from arkloop.shared.runs.agent_costs import AgentCost
from arkloop.shared.runs.agent_endings import Complete
from arkloop.shared.runs.held_runs import HeldRun, Written
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.transitions import queued
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.runs import runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """The part that all writes have: events from the number `seq` on, and a checkpoint, as JSON."""

    run_id: UUID
    fence: int
    seq: int | None = None
    events: Sequence[Event | AgentCost] = ()
    checkpoint: str | None = None
    begun: Sequence[str] = ()  # calls of earlier executions that are made now
    unbegun: Sequence[str] | None = None  # calls that have not begun, when this execution ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A reservation of at most `usd` for the next model call; with `gives_up` the last attempt."""

    run_id: UUID
    fence: int
    usd: Decimal
    gives_up: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A question to a person; a `key` tells it from others with the same text."""

    key: str | None
    prompt: str
    options: list[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AskApproval:
    """The request to approve a recorded call; `prompt` replaces the usual question."""

    tool_call_id: str
    prompt: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """The failure of the agent."""

    error: RunError


@dataclass(frozen=True, slots=True)
class Delegate:
    """Tasks for sub-runs, for whose results the run waits."""

    tasks: Sequence[DelegatedTask]


@dataclass(frozen=True, slots=True)
class Release:
    """The return of the run to the queue, since the agent worker stops."""


#: What a write does with the run besides; None: it continues.
Then = Ask | AskApproval | Delegate | Complete | Fail | Release | None


def write(
    tx: Transaction,
    org_id: UUID,
    agent: str,
    change: Write,
    catalog: Catalog,
    then: Then = None,
    *,
    max_output_bytes: int,
) -> Written:
    """Write to a run that an agent worker holds. A write that was made before has no effect.

    A cancel that was accepted before takes precedence over every end; an exhausted budget, a turn
    beyond the limit of steps, and events of more than `max_output_bytes`, end the run, too.

    Raises:
        RunNotFound: the agent has no such run.
        OutdatedFence: the run is not this claim's any more.
        SequenceConflict: the number is not the next one, and not that of the same write.
        InvalidRequest: calls and results without a turn.
    """
    run = held_runs.lock(tx, org_id, agent, change.run_id, change.fence)
    is_held = run.row["state"] == RunState.EXECUTING
    if change.seq is not None and change.seq <= run.last_seq:
        _check_is_repeated(run, change, then, catalog)
        return run.written(run.row["state"])
    if not is_held:
        raise OutdatedFence(run_state=run.row["state"])
    if change.seq is not None and change.seq != run.last_seq + 1:
        raise SequenceConflict(next_seq=run.last_seq + 1)
    sub_runs.lock_parents(tx, [run.row], wait=True)  # before money, should the run end now
    stored = agent_events.store(
        run, change.events, catalog, delegates=_delegates(run, change, then)
    )
    _note(run, change)
    approved_calls.begin(run, change.begun)
    error = stored.error or agent_limits.check_output_size(
        tx.sql, run.id, run.last_seq, len(change.events), run.written_bytes, max_output_bytes
    )
    if run.row["cancel_requested_at"] is not None and (then is not None or error is not None):
        return agent_endings.end(run, RunState.CANCELLED)
    if isinstance(then, Complete):
        agent_limits.check_output(_persona_of(run, catalog), then.content, then.output)
    if error is not None and stored.is_unpriced:
        return agent_endings.end(run, RunState.FAILED, error)
    if error is not None:
        answer = then if isinstance(then, Complete) else None
        return agent_endings.stop(run, _persona_of(run, catalog), error, answer, stored.text)
    if change.unbegun is not None:
        approved_calls.keep_unbegun(run, change.unbegun)
    match then:
        case Ask():
            asked = {
                "kind": "question",
                "prompt": then.prompt,
                "tool_call_id": then.key,
                "options": then.options,
            }
            return _park(run, _persona_of(run, catalog), asked)
        case AskApproval():
            call = approved_calls.find(run, then.tool_call_id)
            asked = approved_calls.request(call, then.prompt)
            return _park(run, _persona_of(run, catalog), asked, approved_calls.shown(call))
        case Delegate():
            return _delegate(run, catalog, then)
        case Complete():
            return agent_endings.end(run, RunState.COMPLETED, answer=then)
        case Fail(error=failure):
            return agent_endings.end(run, RunState.FAILED, failure)
        case Release():
            return _release(run, _persona_of(run, catalog))
    return run.written(RunState.EXECUTING)


def reserve(
    tx: Transaction,
    org_id: UUID,
    agent: str,
    hold: Hold,
    catalog: Catalog,
) -> tuple[Written, bool]:
    """Reserve what the next model call of an agent may cost at most; False: not now.

    Where it can never fit, and with `gives_up`, the run ends as one that has exceeded its budget.
    A request that is repeated, because that response was lost, has no effect.

    Raises:
        RunNotFound, OutdatedFence
    """
    run = held_runs.lock(tx, org_id, agent, hold.run_id, hold.fence)
    is_held = run.row["state"] == RunState.EXECUTING
    if not is_held or run.row["cancel_requested_at"] is not None:
        return run.written(run.row["state"]), False
    sub_runs.lock_parents(tx, [run.row], wait=True)  # before money, should the run end now
    persona = _persona_of(run, catalog)
    refused = agent_costs.hold(run, persona, hold.usd)
    if refused is not None and (hold.gives_up or not refused.others_reserved):
        error = agent_costs.exhausted(run, persona, refused)
        return agent_endings.stop(run, persona, error), False
    return run.written(RunState.EXECUTING), refused is None


def _persona_of(run: HeldRun, catalog: Catalog) -> Persona:
    return persona_of(catalog, run.row, run.tx.sql)


def _check_is_repeated(run: HeldRun, change: Write, then: Then, catalog: Catalog) -> None:
    """Check that what stands there is this write. Raises: SequenceConflict, OutdatedFence."""
    assert change.seq is not None
    wanted = [_type_of(event) for event in change.events]
    there = event_log.read_table(run.tx.sql, run.id, change.seq - 1, len(wanted) + 1)
    is_same = wanted == [event.type for event in there[: len(wanted)]]
    is_same = is_same and _has_ended_so(then, next(iter(there[len(wanted) :]), None))
    is_held = run.row["state"] == RunState.EXECUTING
    if not is_same and not is_held:
        is_same = _has_ended_at_limit(run, change, then, catalog, there)
    if not is_same and not is_held:
        raise OutdatedFence(run_state=run.row["state"])
    if not is_same or (then is not None and is_held):
        raise SequenceConflict(next_seq=run.last_seq + 1)


def _has_ended_at_limit(
    run: HeldRun, change: Write, then: Then, catalog: Catalog, there: Sequence[StoredEvent]
) -> bool:
    """Return whether this write had a turn beyond a limit, and the run ended by that."""
    assert change.seq is not None
    persona, delegates = _persona_of(run, catalog), _delegates(run, change, then)
    ends = (n for n, event in enumerate(there) if agent_endings.is_end_by_service(event))
    end = next(ends, None)
    if end is None:
        return False
    text = types.MessageDelta.type  # stands for the turn, where it was not streamed
    found = [event.type for event in there[:end] if event.type != text]
    stored = agent_steps.stored_of(run, persona, change.seq, change.events, delegates=delegates)
    return found in [[kind for one in many if (kind := _type_of(one)) != text] for many in stored]


def _delegates(run: HeldRun, change: Write, then: Then) -> bool:
    """Return whether calls of `delegate` follow the events of the write that are not recorded."""
    if not isinstance(then, Delegate):
        return False
    assert change.seq is not None
    call_ids = {task["tool_call_id"] for task in then.tasks}
    for event in change.events:
        if isinstance(event, types.ToolCallRequested):
            call_ids.discard(event.tool_call_id)
    return not call_ids <= approved_calls.recorded(run, call_ids, change.seq)


def _has_ended_so(then: Then, event: StoredEvent | None) -> bool:
    """Return whether the claim has ended with `then`, or instead by the service."""
    if then is None:
        return True
    if event is None:
        return isinstance(then, Release)
    if agent_endings.is_end_by_service(event):
        return True
    match then:
        case Ask() | AskApproval():
            return event.type == types.RunWaitingForInput.type
        case Delegate():
            return event.type in agent_delegation.FIRST_TYPES
        case Complete():
            return event.type in (types.MessageCompleted.type, types.RunCompleted.type)
        case Fail():
            return event.type == types.RunFailed.type
    return False


def _type_of(event: Event | AgentCost) -> str:
    return types.RunCost.type if isinstance(event, AgentCost) else event.type


def _note(run: HeldRun, change: Write) -> None:
    """Store the checkpoint: crashes are counted anew from there."""
    if change.checkpoint is None:
        return
    checkpoints.store(run.tx, run.id, change.fence, change.checkpoint)
    if run.row["crashes"]:
        run.tx.sql.execute(update(runs).where(runs.c.id == run.id).values(crashes=0))


def _park(
    run: HeldRun,
    persona: Persona,
    asked: Mapping[str, Any],
    also_shown: Mapping[str, Any] | None = None,
) -> Written:
    """Let the run wait for a person without a worker."""
    agent_costs.give_back(run, persona)
    expires_at = run.now + timedelta(seconds=persona.input_expires_seconds)
    request: dict[str, Any] = {
        "request_id": str(ids.new_id()),
        **asked,
        "approved_by": call_approvals.reserved_for(asked["kind"], persona.approved_by),
        "expires_at": times.rfc3339(expires_at),
    }
    shown = {name: value for name, value in request.items() if value is not None}
    shown.update(also_shown or {})
    if persona.on_input_expired != "fail":
        shown["on_expiry"] = persona.on_input_expired
    run.store(types.RunWaitingForInput(**request))
    waiting = {
        "state": RunState.WAITING,
        "waiting_since": func.now(),
        "pending_input": shown,
        "input_expires_at": expires_at,
        "crashes": 0,
    }
    run.let_go(waiting)
    return run.written(RunState.WAITING)


def _delegate(run: HeldRun, catalog: Catalog, then: Delegate) -> Written:
    """Let the run wait for sub-runs without a worker."""
    persona = _persona_of(run, catalog)
    agent_events.check_turn(run)
    agent_costs.give_back(run, persona)
    return agent_delegation.delegate(run, catalog, persona, then.tasks)


def _release(run: HeldRun, persona: Persona) -> Written:
    agent_costs.give_back(run, persona)
    run.let_go(queued("deploy"))
    row = run.row
    run.tx.after_commit.append(agent_queue.announce(run.id, row["org_id"], row["agent"]))
    return run.written(RunState.QUEUED)
