"""Sub-runs that a run behind an agent worker starts, and their results for its next claim."""

from collections.abc import Sequence

from sqlalchemy import func, select

from arkloop.shared.agents.agent_run import DelegatedTask
from arkloop.shared.catalog.catalog import Catalog
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.events import event_log, types
from arkloop.shared.events.types import DELEGATE, Event
from arkloop.shared.runs import approved_calls, claims, delegation, pending_calls
from arkloop.shared.runs.delegation import NotDelegated
from arkloop.shared.runs.held_runs import HeldRun, Written
from arkloop.shared.runs.states import ResultSource, RunState
from arkloop.shared.runs.transitions import awaiting_runs
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import tool_calls

_CALL, _RESULT = types.ToolCallRequested.type, types.ToolResult.type
#: The types of the event with which `delegate` begins: its calls may be recorded already.
FIRST_TYPES = (_CALL, types.RunDelegated.type, types.RunSuspended.type)


def delegate(
    run: HeldRun, catalog: Catalog, persona: Persona, tasks: Sequence[DelegatedTask]
) -> Written:
    """Start the sub-runs, and let the run wait for them without a worker.

    A task that nobody may get has an error as its result. A call that is recorded already, as one
    that a person has approved, is not recorded again.

    Raises:
        InvalidRequest: the persona has no `delegates`, or an id is that of another call, or of one
            that a person has not approved.
    """
    if not persona.delegates:
        raise InvalidRequest(tasks=["the run's persona has no `delegates`"])
    call_ids = [task["tool_call_id"] for task in tasks]
    earlier = {call_id for kind, call_id in _calls(run) if kind == _CALL}
    recorded = _recorded(run, [task for task in tasks if task["tool_call_id"] in earlier])
    taken = [id_ for id_ in call_ids if id_ in earlier and id_ not in recorded]
    if taken:
        raise InvalidRequest(tasks=[f"{id_!r} is the id of an earlier call" for id_ in taken])
    events: list[Event] = [
        types.ToolCallRequested(task["tool_call_id"], DELEGATE, _arguments(task))
        for task in tasks
        if task["tool_call_id"] not in recorded
    ]
    events += [started for task in tasks if (started := _start(run, catalog, persona, task))]
    run.store(*events, types.RunSuspended(call_ids))
    run.let_go({"waiting_since": func.now(), "crashes": 0, **awaiting_runs()})
    pending_calls.resume_if_complete(run.tx, run.id)
    return run.written(RunState.SUSPENDED)


def write_results(run: HeldRun) -> None:
    """Write the results that the run has waited for, in call order."""
    rows = run.tx.sql.execute(
        select(tool_calls).where(
            tool_calls.c.run_id == run.id,
            tool_calls.c.result_from == ResultSource.RUN,
            tool_calls.c.done_at.is_not(None),
        )
    ).all()
    if not rows:
        return
    done = {row.tool_call_id: claims.result_of(row, DELEGATE) for row in rows}
    calls = _calls(run)
    written = {call_id for kind, call_id in calls if kind == _RESULT}
    run.store(
        *(
            done[call_id]
            for kind, call_id in calls
            if kind == _CALL and call_id in done and call_id not in written
        )
    )


def _recorded(run: HeldRun, tasks: Sequence[DelegatedTask]) -> set[str]:
    """Return the ids of those tasks whose calls of `delegate` are recorded, without a result.

    Raises:
        InvalidRequest: a person was asked about one, and has not approved it.
    """
    call_ids = [task["tool_call_id"] for task in tasks]
    if not call_ids:
        return set()
    calls, replies = approved_calls.open_of(run, call_ids), approved_calls.replies(run, call_ids)
    not_approved = [id_ for id_, reply in replies.items() if reply is None or not reply.approved]
    if not_approved:
        raise InvalidRequest(tasks=[f"{id_!r} has not been approved" for id_ in not_approved])
    known = {id_: call["arguments"] for id_, call in calls.items() if call["name"] == DELEGATE}
    # A person's arguments replace those of the call.
    known |= {
        id_: reply.arguments
        for id_, reply in replies.items()
        if id_ in known and reply is not None and reply.arguments is not None
    }
    return {
        task["tool_call_id"]
        for task in tasks
        if _arguments(task) == known.get(task["tool_call_id"])
    }


def _arguments(task: DelegatedTask) -> dict[str, str]:
    return {"persona": task["persona"], "task": task["task"]}


def _start(
    run: HeldRun, catalog: Catalog, persona: Persona, task: DelegatedTask
) -> types.RunDelegated | None:
    """Start the sub-run of a call; None if it has an error instead."""
    call_id, claim = task["tool_call_id"], run.claim()
    claims.begin_tool_call(run.tx, claim, call_id, ResultSource.RUN)
    try:
        wanted = delegation.prepare(
            *(catalog, claim, persona, call_id),
            persona=task["persona"],
            task=task["task"],
            sql=run.tx.sql,
        )
        sub_run = delegation.start(run.tx, claim, wanted)
    except NotDelegated as refused:
        result = types.ToolResult(call_id, DELEGATE, str(refused), True, 0)
        claims.end_tool_call(run.tx, claim, result)
        return None
    assert sub_run is not None  # the run is not being cancelled: its row is locked
    return delegation.announcement(call_id, sub_run)


def _calls(run: HeldRun) -> list[tuple[str, str]]:
    """Return the types and ids of the run's calls and results, in order."""
    rows = run.tx.sql.execute(
        select(run_events.c.type, run_events.c.payload)
        .where(run_events.c.run_id == run.id, run_events.c.type.in_((_CALL, _RESULT)))
        .order_by(run_events.c.seq)
    )
    return [(row.type, event_log.data_of(row.payload)["tool_call_id"]) for row in rows]
