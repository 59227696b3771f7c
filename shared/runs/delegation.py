"""Delegation: a run starts another one, a sub-run, by one of its tool calls."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, RowMapping, func, insert, select, update

from arkloop.shared.actors import DATA_PERMISSIONS, Actor
from arkloop.shared.agents.transcript import MAX_TASK_CHARACTERS
from arkloop.shared.billing import budget_limits
from arkloop.shared.catalog.catalog import Catalog
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.claim import Claim
from arkloop.shared.errors import (
    BudgetExhausted,
    InvalidRequest,
    LeaseLost,
    PersonaNotFound,
    RouteNotFound,
)
from arkloop.shared.events import event_log
from arkloop.shared.events.types import RunDelegated
from arkloop.shared.ids import new_id
from arkloop.shared.runs import overrides, run_spans
from arkloop.shared.runs.creation import NewMessage, NewRun, NewThread, create_all
from arkloop.shared.runs.new_runs import agent_of
from arkloop.shared.runs.states import ResultSource, RunState
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.billing import reservations
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import IS_ACTIVE, runs, sub_runs, tool_calls
from arkloop.shared.storage.tables.threads import threads
from arkloop.shared.threads.content import Content


class NotDelegated(Exception):
    """A sub-run that was not started; the message is the reason, for the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delegation:
    """A call of a run that starts another run: `persona` on `route`, in a thread with the `task`.

    `by` is the persona of the run that makes the call, with its limits on sub-runs.
    """

    tool_call_id: str
    by: Persona
    persona: Persona
    route: Route
    task: str


@dataclass(frozen=True, slots=True)
class SubRun:
    """A run that another one has started, and its thread."""

    run_id: UUID
    thread_id: UUID
    persona_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """The place of a run in its tree; `caps` are the limits of the runs above it, by their ids."""

    root_run_id: UUID
    depth: int
    levels_left: int
    caps: dict[str, str | None]


def prepare(
    catalog: Catalog,
    claim: Claim,
    by: Persona,
    tool_call_id: str,
    *,
    persona: str,
    task: str,
    sql: Connection | None = None,
) -> Delegation:
    """Return what a call of `delegate` asks for: a run of `persona`, for a run of `by`.

    A caller inside a transaction passes its connection as `sql`.

    Raises:
        NotDelegated: the persona may not get tasks, is gone, or requires variables.
    """
    if persona not in by.delegates:
        raise NotDelegated(f"Not executed: {persona!r} is none of {', '.join(by.delegates)}.")
    if not 1 <= len(task) <= MAX_TASK_CHARACTERS:
        raise NotDelegated(f"Not executed: a task has 1 to {MAX_TASK_CHARACTERS:,} characters.")
    try:
        found = catalog.persona(claim.org_id, persona, sql=sql)
        route_id = found.route_id or claim.route_id
        route = catalog.choose_route(claim.org_id, route_id, found, sql=sql)
        overrides.check(found, route, {})
    except (PersonaNotFound, RouteNotFound) as error:
        raise NotDelegated(f"Not executed: {error.code}: {error.message}") from None
    except InvalidRequest:
        why = f"{persona!r} requires variables, which a task cannot give."
        raise NotDelegated(f"Not executed: {why}") from None
    return Delegation(tool_call_id=tool_call_id, by=by, persona=found, route=route, task=task)


def start(tx: Transaction, claim: Claim, wanted: Delegation) -> SubRun | None:
    """Start the sub-run of a call that has begun, once; None if the run is being cancelled.

    It is queued, or waits for its turn where the run has as many active sub-runs as it may have.
    It belongs to the user, the API key and the end user of its parent, and is seen by those who
    see that.

    Raises:
        LeaseLost
        NotDelegated: it would be too deep, nothing is left for it, or the thread is deleted.
    """
    # The lock keeps apart the calls of one turn, and the ends of sub-runs that were started before.
    parent = _locked(tx.sql, claim)
    call_id = wanted.tool_call_id
    if (started := _find(tx.sql, claim.run_id, call_id)) is not None:
        return started
    if parent["cancel_requested_at"] is not None:
        return None
    if parent["visible_to"] is None:
        raise NotDelegated("Not executed: the thread of this run was deleted.")
    place = _place_of(tx.sql, claim, wanted.by)
    if place.levels_left < 1:
        raise NotDelegated(
            "Not executed: this run must not start sub-runs, for it is one itself, at the lowest"
            " level that is allowed."
        )
    actor = Actor(
        org_id=claim.org_id,
        user_id=parent["created_by_user_id"],
        role="member",
        permissions=DATA_PERMISSIONS,
        api_key_id=claim.api_key_id,
    )
    try:
        budget_limits.check_open(
            *(tx.sql, actor, wanted.persona, wanted.route, claim.end_user_id),
            agent=agent_of(wanted.persona),
        )
    except BudgetExhausted as error:
        raise NotDelegated(f"Not executed: {error.code}: {error.message}") from None
    has_turn = _active_count(tx.sql, claim.run_id) < wanted.by.max_active_children
    sub_run = _insert(tx, actor, claim, parent, wanted)
    of_run: dict[str, Any] = {"parent_run_id": claim.run_id}
    if not has_turn:
        of_run["state"] = RunState.SUSPENDED
    tx.sql.execute(update(runs).where(runs.c.id == sub_run.run_id).values(of_run))
    tx.sql.execute(
        insert(sub_runs).values(
            run_id=sub_run.run_id,
            parent_run_id=claim.run_id,
            parent_call_id=call_id,
            root_run_id=place.root_run_id,
            depth=place.depth + 1,
            levels_left=min(place.levels_left - 1, wanted.persona.max_depth),
        )
    )
    own_cap = wanted.by.max_cost_usd
    _begin_reservation(tx, claim, sub_run.run_id, {**place.caps, str(claim.run_id): _text(own_cap)})
    tx.sql.execute(
        update(tool_calls)
        .where(tool_calls.c.run_id == claim.run_id, tool_calls.c.tool_call_id == call_id)
        .values(result_from=ResultSource.RUN, accepted_at=func.now())
    )
    return sub_run


def unannounced(sql: Connection, run_id: UUID) -> list[tuple[str, SubRun]]:
    """Return the run's sub-runs that none of its events names, by their calls."""
    started = sql.execute(
        select(
            sub_runs.c.parent_call_id,
            *(runs.c[name] for name in ("id", "thread_id", "persona_id")),
        )
        .join(runs, runs.c.id == sub_runs.c.run_id)
        .where(sub_runs.c.parent_run_id == run_id)
        .order_by(runs.c.created_at, runs.c.id)
    ).all()
    announced = {
        event_log.data_of(payload)["run_id"]
        for payload in sql.scalars(
            select(run_events.c.payload).where(
                run_events.c.run_id == run_id, run_events.c.type == RunDelegated.type
            )
        )
    }
    return [
        (row.parent_call_id, SubRun(row.id, row.thread_id, row.persona_id))
        for row in started
        if str(row.id) not in announced
    ]


def announcement(tool_call_id: str, sub_run: SubRun) -> RunDelegated:
    """Return the event of a call that has started a sub-run."""
    return RunDelegated(
        tool_call_id, str(sub_run.run_id), str(sub_run.thread_id), sub_run.persona_id
    )


def begun(sql: Connection, run_id: UUID, call_ids: Collection[str]) -> set[str]:
    """Return those of the run's calls that start sub-runs, whether they have done so or not."""
    return {row.tool_call_id for row in _ledger(sql, run_id, call_ids)}


def accepted(sql: Connection, run_id: UUID, call_ids: Collection[str]) -> set[str]:
    """Return those of the run's calls that have started a sub-run, or have the result of one."""
    rows = _ledger(sql, run_id, call_ids)
    return {row.tool_call_id for row in rows if row.accepted_at or row.done_at}


def _ledger(sql: Connection, run_id: UUID, call_ids: Collection[str]) -> Sequence[Row[Any]]:
    columns = (tool_calls.c[name] for name in ("tool_call_id", "accepted_at", "done_at"))
    return sql.execute(
        select(*columns).where(
            tool_calls.c.run_id == run_id,
            tool_calls.c.tool_call_id.in_(call_ids),
            tool_calls.c.result_from == ResultSource.RUN,
        )
    ).all()


def _insert(
    tx: Transaction, actor: Actor, claim: Claim, parent: RowMapping, wanted: Delegation
) -> SubRun:
    """Insert the run in a thread of its own.

    The thread has neither end user nor metadata, so that lists by these have the threads of people
    alone; the run has those of its parent, for lists of runs and for usage. A private thread
    belongs to the user who sees the parent: another one may have created that while its thread was
    public.
    """
    thread_id = new_id()
    is_private = parent["visible_to"] != claim.org_id
    of_thread = {"parent_run_id": claim.run_id}
    if is_private:
        of_thread["created_by_user_id"] = parent["visible_to"]
    new = NewRun(
        actor=actor,
        thread_id=thread_id,
        thread=NewThread(is_private=is_private),
        message=NewMessage(content=Content(wanted.task)),
        persona=wanted.persona,
        route=wanted.route,
        trace_id=claim.trace_id,
        end_user_id=claim.end_user_id,
        metadata=parent["metadata"],
    )
    began = time.time_ns()
    [run_id] = create_all(tx, [new])
    assert run_id is not None  # its thread is new
    run_spans.created(run_id, new.trace_id, claim.org_id, began=began)
    tx.sql.execute(update(threads).where(threads.c.id == thread_id).values(of_thread))
    return SubRun(run_id, thread_id, wanted.persona.id)


def _begin_reservation(
    tx: Transaction, claim: Claim, run_id: UUID, caps: dict[str, str | None]
) -> None:
    """Insert the reservation of a sub-run, of nothing so far, under all limits of its tree."""
    tx.sql.execute(
        insert(reservations).values(
            run_id=run_id,
            org_id=claim.org_id,
            month=func.date_trunc("month", func.timezone("UTC", func.now())),
            scopes=[],
            cost_usd=0,
            held_usd=0,
            caps=caps,
        )
    )


def _locked(sql: Connection, claim: Claim) -> RowMapping:
    parent = (
        sql.execute(
            select(
                runs.c.created_by_user_id,
                runs.c.metadata,
                runs.c.cancel_requested_at,
                # Not what the thread says: where this has waited for a change of the thread, which
                # locks its runs, Postgres looks at the run's row anew, but not at the thread's.
                runs.c.visible_to,
            )
            .where(
                runs.c.id == claim.run_id,
                runs.c.fence == claim.fence,
                runs.c.state == RunState.EXECUTING,
            )
            .with_for_update(key_share=True)
        )
        .mappings()
        .one_or_none()
    )
    if parent is None:
        raise LeaseLost()
    return parent


def _find(sql: Connection, run_id: UUID, call_id: str) -> SubRun | None:
    row = sql.execute(
        select(runs.c.id, runs.c.thread_id, runs.c.persona_id)
        .join(sub_runs, sub_runs.c.run_id == runs.c.id)
        .where(sub_runs.c.parent_run_id == run_id, sub_runs.c.parent_call_id == call_id)
    ).one_or_none()
    if row is None:
        return None
    return SubRun(row.id, row.thread_id, row.persona_id)


def _place_of(sql: Connection, claim: Claim, persona: Persona) -> _Place:
    root = _Place(root_run_id=claim.run_id, depth=0, levels_left=persona.max_depth, caps={})
    if claim.parent_run_id is None:
        return root
    row = sql.execute(
        select(
            sub_runs.c.root_run_id, sub_runs.c.depth, sub_runs.c.levels_left, reservations.c.caps
        )
        .outerjoin(reservations, reservations.c.run_id == sub_runs.c.run_id)
        .where(sub_runs.c.run_id == claim.run_id)
    ).one()
    return _Place(
        root_run_id=row.root_run_id,
        depth=row.depth,
        levels_left=row.levels_left,
        caps=row.caps or {},
    )


def _active_count(sql: Connection, run_id: UUID) -> int:
    """Count the sub-runs of a run that have not ended, without those that wait for their turn."""
    waits = (runs.c.state == RunState.SUSPENDED) & (runs.c.attempt == 0)
    query = select(func.count()).where(runs.c.parent_run_id == run_id, IS_ACTIVE, ~waits)
    return sql.scalar(query) or 0


def _text(usd: Decimal | None) -> str | None:
    return None if usd is None else str(usd)
