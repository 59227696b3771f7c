"""The writes of agent workers to the runs that they hold: each carries the fence of its claim.

The agent numbers its events itself, from the number that it got with the run. So a request that is
repeated because its response was lost changes nothing, and a hole is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, RowMapping, delete, exists, func, select, update

from arkloop.shared import ids, times
from arkloop.shared.billing import budgets
from arkloop.shared.catalog.catalog import Catalog
from arkloop.shared.catalog.model_routes import OF_AGENT
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.claim import Claim
from arkloop.shared.errors import InvalidRequest, OutdatedFence, RunNotFound, SequenceConflict
from arkloop.shared.events import event_log, types
from arkloop.shared.events.plain import clean
from arkloop.shared.events.stored_events import StoredEvent, encode
from arkloop.shared.events.types import Event, RouteCost, RunError
from arkloop.shared.events.usage import Usage
from arkloop.shared.runs import (
    agent_costs,
    agent_limits,
    agent_queue,
    checkpoints,
    endings,
    sub_runs,
)
from arkloop.shared.runs.agent_claims import persona_of
from arkloop.shared.runs.agent_costs import AgentCost
from arkloop.shared.runs.endings import Ending, TakenOver
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.transitions import Totals, queued, recorded_totals
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import agent_runs, runs

#: Events that belong to a model turn, which must have begun before.
_OF_TURN = (types.ToolCallRequested, types.ToolResult)


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """The part that all writes have: events from the number `seq` on, and a checkpoint, as JSON."""

    run_id: UUID
    fence: int
    seq: int | None = None
    events: Sequence[Event | AgentCost] = ()
    checkpoint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A question to a person; a `key` tells it from others with the same text."""

    key: str | None
    prompt: str
    options: list[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Complete:
    """The final answer; `output` is what `content` means in a run with an output schema."""

    content: str
    output: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """The failure of the agent."""

    error: RunError


@dataclass(frozen=True, slots=True)
class Release:
    """The return of the run to the queue, since the agent worker stops."""


#: What a write does with the run besides; None: it continues.
Then = Ask | Complete | Fail | Release | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The run after a write."""

    state: str
    cancel_requested: bool
    next_seq: int


class _Held:
    """A run whose row is locked, and that this fence holds."""

    def __init__(self, tx: Transaction, row: RowMapping, last_seq: int, now: datetime) -> None:
        self.tx = tx
        self.row = row
        self.id: UUID = row["id"]
        self.last_seq = last_seq
        self.now = now
        self.written_bytes = 0

    def store(self, *happened: Event) -> None:
        if happened:
            event_log.store(self.tx, {self.id: self.number(happened)})

    def number(self, happened: Sequence[Event]) -> list[StoredEvent]:
        stored = [encode(self.last_seq + i, event, self.now) for i, event in enumerate(happened, 1)]
        self.last_seq += len(stored)
        self.written_bytes += sum(event.size for event in stored)
        return stored


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

    A cancel that was accepted before takes precedence over every end; an exhausted budget, and
    events of more than `max_output_bytes`, end the run, too.

    Raises:
        RunNotFound: the agent has no such run.
        OutdatedFence: the run is not this claim's any more.
        SequenceConflict: the number is not the next one, and not that of the same write.
        InvalidRequest: calls and results without a turn.
    """
    run = _lock(tx, org_id, agent, change)
    is_held = run.row["state"] == RunState.EXECUTING
    if change.seq is not None and change.seq <= run.last_seq:
        _check_is_repeated(run, change, is_end=then is not None)
        return _written(run.row["state"], run)
    if not is_held:
        raise OutdatedFence(run_state=run.row["state"])
    if change.seq is not None and change.seq != run.last_seq + 1:
        raise SequenceConflict(next_seq=run.last_seq + 1)
    costs = _store(run, change, catalog)
    _note(run, change)
    sub_runs.lock_parents(tx, [run.row], wait=True)  # before money, should the run end now
    error = _spend(run, persona_of(catalog, run.row)) if costs else None
    if any(isinstance(event, types.ToolCallRequested) for event in change.events):
        error = error or agent_limits.check_steps(tx.sql, run.id, persona_of(catalog, run.row))
    error = error or agent_limits.check_output_size(
        tx.sql, run.id, run.last_seq, len(change.events), run.written_bytes, max_output_bytes
    )
    if run.row["cancel_requested_at"] is not None and then is not None:
        return _end(run, RunState.CANCELLED)
    if error is not None:
        return _end(run, RunState.FAILED, error)
    match then:
        case Ask():
            return _park(run, persona_of(catalog, run.row), then)
        case Complete(content=content, output=output):
            agent_limits.check_output(persona_of(catalog, run.row), content, output)
            return _end(run, RunState.COMPLETED, answer=then)
        case Fail(error=failure):
            return _end(run, RunState.FAILED, failure)
        case Release():
            return _release(run)
    return _written(RunState.EXECUTING, run)


def _lock(tx: Transaction, org_id: UUID, agent: str, change: Write) -> _Held:
    row = (
        tx.sql.execute(
            select(*runs.c)
            .where(runs.c.id == change.run_id, runs.c.org_id == org_id, runs.c.agent == agent)
            .with_for_update()
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        raise RunNotFound()
    if row["fence"] != change.fence:
        raise OutdatedFence(run_state=row["state"])
    # After the lock: what others wrote before it counts.
    last_seq, now = tx.sql.execute(
        select(func.coalesce(func.max(run_events.c.seq), 0), func.clock_timestamp()).where(
            run_events.c.run_id == change.run_id
        )
    ).one()
    return _Held(tx, row, last_seq, now)


def _check_is_repeated(run: _Held, change: Write, *, is_end: bool) -> None:
    """Check that what stands there is this write. Raises: SequenceConflict."""
    assert change.seq is not None
    wanted = [_type_of(event) for event in change.events]
    there = event_log.read_table(run.tx.sql, run.id, change.seq - 1, len(wanted) + 1)
    is_whole = wanted == [event.type for event in there[: len(wanted)]]
    if not is_whole or (is_end and run.row["state"] == RunState.EXECUTING):
        raise SequenceConflict(next_seq=run.last_seq + 1)


def _type_of(event: Event | AgentCost) -> str:
    return types.RunCost.type if isinstance(event, AgentCost) else event.type


def _store(run: _Held, change: Write, catalog: Catalog) -> bool:
    """Store the events; returns whether there are costs among them."""
    if not change.events:
        return False
    first = next(
        (e for e in change.events if isinstance(e, (*_OF_TURN, types.MessageCompleted))), None
    )
    if isinstance(first, _OF_TURN) and not _has_turn(run.tx.sql, run.id):
        raise InvalidRequest(
            events=["a call or result needs a `message.completed` before it, whose turn it is of"]
        )
    has_costs = any(isinstance(event, AgentCost) for event in change.events)
    totals = recorded_totals(run.tx.sql, run.id) if has_costs else Totals()
    happened: list[Event] = []
    for event in change.events:
        if isinstance(event, AgentCost):
            route_id = f"{OF_AGENT}{run.row['agent']}"
            model = event.model or run.row["model"]
            route = catalog.route(run.row["org_id"], run.row["route_id"])
            usd = agent_costs.usd_of(
                run.tx.sql, event, route, _claim_of(run), persona_of(catalog, run.row)
            )
            totals = totals.plus(RouteCost(route_id, model, event.usage, usd))
            event = types.RunCost(totals.usage, totals.cost_usd, totals.routes)
        happened.append(event)
    run.store(*happened)
    return has_costs


def _has_turn(sql: Connection, run_id: UUID) -> bool:
    turn = (run_events.c.run_id == run_id) & (run_events.c.type == types.MessageCompleted.type)
    return bool(sql.scalar(select(exists().where(turn))))


def _note(run: _Held, change: Write) -> None:
    """Store the checkpoint: crashes are counted anew from there."""
    if change.checkpoint is None:
        return
    checkpoints.store(run.tx, run.id, change.fence, change.checkpoint)
    if run.row["crashes"]:
        run.tx.sql.execute(update(runs).where(runs.c.id == run.id).values(crashes=0))


def _spend(run: _Held, persona: Persona) -> RunError | None:
    """Count the costs so far in budgets; returns the error of a run that has exceeded one."""
    claim, totals = _claim_of(run), recorded_totals(run.tx.sql, run.id)
    limits = budgets.limits(run.tx.sql, claim, persona)
    if not limits.has_budget and not limits.needs_reservation:
        return None
    own_usd, nothing = totals.own_usd, Decimal(0)
    try:
        with run.tx.sql.begin_nested():
            budgets.reserve(
                run.tx,
                claim,
                limits,
                totals.cost_usd,
                nothing,
                own_usd=own_usd,
                on_own_route=True,
            )
    except budgets.Refused as refused:
        if limits.needs_reservation:
            budgets.settle(run.tx, claim, totals.cost_usd, limits, own_usd=own_usd)
        budgets.note_refusal(run.tx, claim.org_id, refused)
        return RunError("budget.exhausted", str(refused), refused.others_reserved)
    return None


def _claim_of(run: _Held) -> Claim:
    row = run.row
    same = ("org_id", "thread_id", "persona_id", "route_id", "model", "trace_id", "options")
    also = ("end_user_id", "position", "fence", "attempt", "queued_at", "api_key_id")
    return Claim(
        run_id=run.id,
        last_seq=run.last_seq,
        claimed_at=run.now,
        used_seconds=0,
        is_suspect=False,
        **{name: row[name] for name in (*same, *also)},
    )


def _end(
    run: _Held, state: RunState, error: RunError | None = None, answer: Complete | None = None
) -> Written:
    tx, totals = run.tx, recorded_totals(run.tx.sql, run.id)
    message: tuple[UUID, str] | None = None
    closing: list[Event]
    if answer is not None:
        content = clean(answer.content)
        there = _last_turn(run, content)
        message = (there or ids.new_id(), content) if content else None
        shown = str(message[0]) if message else None
        closing = [types.RunCompleted(shown, totals.usage, totals.cost_usd, "stop", answer.output)]
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
            usd = totals.cost_usd
            closing = [requested, types.RunCancelled(totals.usage, usd, by and str(by))]
    ending = Ending(
        claim=TakenOver(run.id, run.row["org_id"], run.row["fence"], run.row["parent_run_id"]),
        state=state,
        stored=run.number(closing),
        totals=totals.after(closing),
        message=message,
        stop_reason="stop" if answer is not None else None,
        output_is_json=answer is not None and answer.output is not None,
        error=error,
        has_reservation=True,
    )
    outcome = endings.end_with_reservation(tx, ending)
    assert outcome is endings.Outcome.ENDED, outcome  # its row is locked
    tx.sql.execute(delete(agent_runs).where(agent_runs.c.run_id == run.id))
    return _written(state, run)


def _last_turn(run: _Held, content: str) -> UUID | None:
    """Return the message id of the run's last turn if the final answer is all of it."""
    kinds = (types.MessageCompleted.type, *types.STREAMED_TYPES, *(kind.type for kind in _OF_TURN))
    last = run.tx.sql.execute(
        select(run_events.c.type, run_events.c.payload)
        .where(run_events.c.run_id == run.id, run_events.c.type.in_(kinds))
        .order_by(run_events.c.seq.desc())
        .limit(1)
    ).one_or_none()
    if last is None or last.type != types.MessageCompleted.type:
        return None
    turn = event_log.data_of(last.payload)
    return UUID(turn["message_id"]) if turn["content"] == content else None


def _park(run: _Held, persona: Persona, ask: Ask) -> Written:
    """Let the run wait for a person without a worker."""
    expires_at = run.now + timedelta(seconds=persona.input_expires_seconds)
    request: dict[str, Any] = {
        "request_id": str(ids.new_id()),
        "kind": "question",
        "prompt": ask.prompt,
        "tool_call_id": ask.key,
        "options": ask.options,
        "expires_at": times.rfc3339(expires_at),
    }
    shown = {name: value for name, value in request.items() if value is not None}
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
    _let_go(run, waiting)
    return _written(RunState.WAITING, run)


def _release(run: _Held) -> Written:
    _let_go(run, queued("deploy"))
    row = run.row
    run.tx.after_commit.append(agent_queue.announce(run.id, row["org_id"], row["agent"]))
    return _written(RunState.QUEUED, run)


def _let_go(run: _Held, values: dict[str, Any]) -> None:
    totals = recorded_totals(run.tx.sql, run.id)
    changed = update(runs).where(runs.c.id == run.id)
    run.tx.sql.execute(changed.values(**values, **totals.columns()))


def _written(state: str, run: _Held) -> Written:
    is_active = not RunState(state).is_terminal
    cancel = is_active and run.row["cancel_requested_at"] is not None
    return Written(state=str(state), cancel_requested=cancel, next_seq=run.last_seq + 1)
