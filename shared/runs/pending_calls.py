"""Tool calls whose results come from outside the workers: from a client, an HTTP tool, a sub-run.

A worker begins such a call by its row in `tool_calls`, finishes the other calls of the turn and
parks the run. A result is stored in the row of its call, under the lock of the run's row; with the
last one the run is queued again, and its next attempt writes the events in call order.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Row,
    RowMapping,
    Select,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from arkloop.shared.errors import InvalidRequest, NotActive, NotWaiting, ToolResultConflict
from arkloop.shared.events import tool_output
from arkloop.shared.events.plain import clean
from arkloop.shared.events.types import ToolResult
from arkloop.shared.runs import agent_queue
from arkloop.shared.runs.states import ResultSource, RunState
from arkloop.shared.runs.transitions import awaiting_runs, queued, waiting_is_over
from arkloop.shared.storage import signals
from arkloop.shared.storage.arrays import TextArray, is_among, plain_array
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.notifications import Reached
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import inputs, runs, tool_calls
from arkloop.shared.times import rfc3339

#: The `kind` of `runs.pending_input` while results are missing.
KIND = "tool_results"
#: What the model reads where the time of a client tool is over.
TOO_LATE = "No result was sent within the tool's time limit; the call may have taken effect."
#: Results that are sent over the API, and those that pages of end users send.
_SENT = (ResultSource.CLIENT, ResultSource.HTTP)
_SENT_BY_PAGES = (ResultSource.CLIENT,)

_STORE = """
UPDATE tool_calls c
SET done_at = now(), output = r.output, is_error = r.is_error, whole_output = r.whole_output,
    duration_ms = greatest(0, extract(epoch FROM clock_timestamp() - c.started_at) * 1000)
FROM (
    SELECT unnest((SELECT %(tool_call_ids)s::text[])) AS tool_call_id,
        unnest((SELECT %(outputs)s::text[])) AS output,
        unnest((SELECT %(errors)s::boolean[])) AS is_error,
        unnest((SELECT %(whole_outputs)s::text[])) AS whole_output
) r
WHERE c.run_id = %(run_id)s AND c.tool_call_id = r.tool_call_id AND c.done_at IS NULL
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallResult:
    """The result of a tool call, as its sender gives it: `output` is of any length."""

    tool_call_id: str
    output: str
    is_error: bool = False


def give(
    tx: Transaction,
    run: RowMapping,
    results: Sequence[CallResult],
    *,
    is_from_page: bool = False,
    skips_late: bool = False,
) -> None:
    """Store results that were sent over the API, all or none; `run` is its locked row.

    A result that is stored already changes nothing. Pages of end users cannot send results of the
    org's HTTP tools. With `skips_late`, results of calls whose own time is over are left out.

    Raises:
        ToolResultConflict: a call has another result.
        NotActive: the run has ended. NotWaiting: it does not wait for these results, or no longer.
        InvalidRequest: the run has no such call.
    """
    sources = _SENT_BY_PAGES if is_from_page else _SENT
    calls = _calls(tx.sql, run["id"], results, sources)
    stored = [(calls[r.tool_call_id], r) for r in results if r.tool_call_id in calls]
    if skips_late:
        time = _now(tx.sql)
        stored = [(call, r) for call, r in stored if not _is_late(run, call, time)]
    if other := [r.tool_call_id for call, r in stored if call.done_at and not _is_same(call, r)]:
        raise ToolResultConflict(tool_call_ids=other)
    unknown = [i for i, result in enumerate(results) if result.tool_call_id not in calls]
    new = [result for call, result in stored if call.done_at is None]
    if not unknown and not new:
        return
    if RunState(run["state"]).is_terminal:
        raise NotActive()
    is_waiting = _awaits_results(run)
    is_of_client = any(calls[r.tool_call_id].result_from == ResultSource.CLIENT for r in new)
    if not is_waiting and (unknown or is_of_client):
        raise NotWaiting("The run is not waiting for these tool results.")
    if unknown:
        why = "is not a call of this run whose result can be sent"
        raise InvalidRequest(**{f"{i}.tool_call_id": [why] for i in unknown})
    if is_waiting and any(_expires_at(run, r.tool_call_id) <= _now(tx.sql) for r in new):
        raise NotWaiting("The time to send tool results is over.")
    _store(tx.sql, run["id"], new)
    tx.after_commit.append(Reached("api.results_stored"))
    _resume_if_complete(tx, run)


def has_any(sql: Connection, run_id: UUID, results: Sequence[CallResult]) -> bool:
    """Return whether any of these results is the one that its call has."""
    calls = _calls(sql, run_id, results, _SENT)
    stored = ((calls[r.tool_call_id], r) for r in results if r.tool_call_id in calls)
    return any(call.done_at is not None and _is_same(call, r) for call, r in stored)


def are_of_http_tools(sql: Connection, run_id: UUID, results: Sequence[CallResult]) -> bool:
    """Return whether the run has all of these calls, and HTTP tools carry them out."""
    calls = _calls(sql, run_id, results, [ResultSource.HTTP])
    return bool(results) and all(result.tool_call_id in calls for result in results)


def as_early(
    sql: Connection, run_id: UUID, results: Sequence[CallResult]
) -> list[dict[str, Any]] | None:
    """Return results that come with a reply, before their calls, as `inputs.results` has them.

    Those of calls that have a result already, from an earlier reply or in the ledger, are left out.
    """
    if not results:
        return None
    known = _known(sql, run_id, [result.tool_call_id for result in results])
    return [
        {
            "tool_call_id": result.tool_call_id,
            "output": clean(result.output[: tool_output.MAX_KEPT_CHARACTERS]),
            "is_error": result.is_error,
        }
        for result in results
        if result.tool_call_id not in known
    ] or None


def early(sql: Connection, run_id: UUID, ids: Collection[str]) -> dict[str, tuple[str, bool]]:
    """Return the results of these calls that came with replies: output and `is_error`, by calls."""
    columns = _EARLY_ID, _EARLY["output"].astext, _EARLY["is_error"].as_boolean()
    return {id_: (output, err) for id_, output, err in sql.execute(_early(run_id, ids, *columns))}


def early_ids(sql: Connection, run_ids: Collection[UUID]) -> dict[UUID, frozenset[str]]:
    """Return the ids of the calls of these runs whose results came with replies."""
    query = select(inputs.c.run_id, func.array_agg(_EARLY_ID)).select_from(inputs)
    found = query.where(is_among(inputs.c.run_id, run_ids)).group_by(inputs.c.run_id)
    return {run_id: frozenset(ids) for run_id, ids in sql.execute(found)}


def kept(sql: Connection, thread_id: UUID, run_id: UUID, ids: Collection[str]) -> Collection[str]:
    """Return those of these calls whose results a run of the thread has, or keeps for later.

    A run that has ended, or is about to, has those of its events. One that the thread lacks has
    them all.
    """
    query = select(runs.c.state, runs.c.cancel_requested_at).where(
        runs.c.id == run_id, runs.c.thread_id == thread_id
    )
    run = sql.execute(query).one_or_none()
    if run is None:
        return ids
    ends = RunState(run.state).is_terminal or run.cancel_requested_at is not None
    known = set() if ends else _known(sql, run_id, ids)
    call_id = run_events.c.payload.cast(JSON)["data"]["tool_call_id"].as_string()
    shown = select(call_id).where(
        run_events.c.run_id == run_id, run_events.c.type == ToolResult.type, call_id.in_(ids)
    )
    return known.union(sql.scalars(shown))


def _known(sql: Connection, run_id: UUID, ids: Collection[str]) -> set[str]:
    """Return those of these calls that have a result from a reply or in the ledger."""
    done = select(tool_calls.c.tool_call_id).where(
        tool_calls.c.run_id == run_id,
        tool_calls.c.tool_call_id.in_(ids),
        tool_calls.c.done_at.is_not(None),
    )
    return {*sql.scalars(done), *sql.scalars(_early(run_id, ids, _EARLY_ID))}


#: One of the results in `inputs.results`.
_EARLY = func.jsonb_array_elements(inputs.c.results, type_=JSONB).column_valued(
    "early", joins_implicitly=True
)
_EARLY_ID = _EARLY["tool_call_id"].astext


def _early(run_id: UUID, ids: Collection[str], *columns: ColumnElement[Any]) -> Select[Any]:
    query = select(*columns).select_from(inputs)
    return query.where(inputs.c.run_id == run_id, _EARLY_ID.in_(ids))


def awaited(sql: Connection, run: RowMapping) -> frozenset[str]:
    """Return the ids of the calls that the run waits for and whose own time is not over."""
    if not _awaits_results(run):
        return frozenset()
    time, ends = _now(sql), _own_ends(run)
    ids = (call["tool_call_id"] for call in run["pending_input"]["calls"])
    return frozenset(id_ for id_ in ids if id_ not in ends or ends[id_] > time)


def settle(tx: Transaction, run_id: UUID, result: CallResult) -> bool:
    """Store the result of a call that has none yet, and queue its run again if it was the last.

    For callers that know the call, such as the end of a sub-run. False, and nothing done, if the
    run has ended or is being cancelled. Locks the run's row until the transaction ends.
    """
    run = _locked(tx.sql, run_id)
    if run is None or RunState(run["state"]).is_terminal or run["cancel_requested_at"] is not None:
        return False
    _store(tx.sql, run_id, [result])
    _resume_if_complete(tx, run)
    return True


def expire(tx: Transaction, run: RowMapping, why: str) -> None:
    """Give each missing result that somebody had to send an error; `run` is its locked row."""
    missing = _missing(tx.sql, run["id"]).items()
    late = sorted(id_ for id_, source in missing if source != ResultSource.RUN)
    results = [CallResult(tool_call_id=id_, output=why, is_error=True) for id_ in late]
    _store(tx.sql, run["id"], results)
    _resume_if_complete(tx, run)


def give_up_late(tx: Transaction, run: RowMapping) -> bool:
    """Give an error to each missing result whose own time is over; False if there is none.

    The others are awaited for as long as before. `run` is its locked row.
    """
    if not _awaits_results(run):
        return False
    now, calls = _now(tx.sql), run["pending_input"]["calls"]
    late = [call for call in calls if call.get("expires_at", now + "Z") <= now]
    if not late:
        return False
    results = [
        CallResult(tool_call_id=call["tool_call_id"], output=TOO_LATE, is_error=True)
        for call in late
    ]
    _store(tx.sql, run["id"], results)
    _resume_if_complete(tx, run)
    return True


def resume_if_complete(tx: Transaction, run_id: UUID) -> None:
    """Queue a parked run again if no result is missing any more."""
    if (run := _locked(tx.sql, run_id)) is not None:
        _resume_if_complete(tx, run)


def _resume_if_complete(tx: Transaction, run: RowMapping) -> None:
    is_suspended = run["state"] == RunState.SUSPENDED and run["attempt"] > 0
    if not is_suspended and not _awaits_results(run):
        return
    of_run = update(runs).where(runs.c.id == run["id"])
    if missing := _missing(tx.sql, run["id"]):
        if is_suspended:
            return
        if all(source == ResultSource.RUN for source in missing.values()):
            tx.sql.execute(of_run.values(**awaiting_runs()))
            return
        pending = run["pending_input"]
        left = [call for call in pending["calls"] if call["tool_call_id"] in missing]
        if left != pending["calls"]:
            values = {"pending_input": {**pending, "calls": left}, **_next_end(pending, left)}
            tx.sql.execute(of_run.values(**values))
        return
    reason = "sub_runs" if is_suspended else "input"
    tx.sql.execute(of_run.values(**queued(reason), **waiting_is_over()))
    tx.after_commit.append(signals.Input(run["id"], run["owner"]))
    tx.after_commit.append(agent_queue.announce(run["id"], run["org_id"], run["agent"]))


def _next_end(pending: Mapping[str, Any], left: Sequence[Mapping[str, Any]]) -> dict[str, datetime]:
    """Return when the first of the results that are left is given up, if a call had its own time.

    It may be later than before: the earliest time may have been that of a call that is done.
    """
    if not any("expires_at" in call for call in pending["calls"]):
        return {}
    own = [call["expires_at"] for call in left if "expires_at" in call]
    return {"input_expires_at": datetime.fromisoformat(min([pending["expires_at"], *own]))}


def _locked(sql: Connection, run_id: UUID) -> RowMapping | None:
    query = select(*runs.c).where(runs.c.id == run_id).with_for_update(key_share=True)
    return sql.execute(query).mappings().one_or_none()


def _calls(
    sql: Connection, run_id: UUID, results: Sequence[CallResult], sources: Sequence[ResultSource]
) -> Mapping[str, Row[Any]]:
    """Return the rows of those calls of the run whose results may be sent, by their ids."""
    rows = sql.execute(
        select(*tool_calls.c).where(
            tool_calls.c.run_id == run_id,
            tool_calls.c.tool_call_id.in_([result.tool_call_id for result in results]),
            tool_calls.c.result_from.in_(sources),
        )
    )
    return {row.tool_call_id: row for row in rows}


def _missing(sql: Connection, run_id: UUID) -> dict[str, str]:
    """Return who sends the missing results, by their calls."""
    rows = sql.execute(
        select(tool_calls.c.tool_call_id, tool_calls.c.result_from).where(
            tool_calls.c.run_id == run_id,
            tool_calls.c.accepted_at.is_not(None),
            tool_calls.c.done_at.is_(None),
        )
    )
    return {row.tool_call_id: row.result_from for row in rows}


def _awaits_results(run: RowMapping) -> bool:
    return run["state"] == RunState.WAITING and bool(run["pending_input"].get("kind") == KIND)


def _now(sql: Connection) -> str:
    return rfc3339(sql.execute(select(func.clock_timestamp())).scalar_one())


def _expires_at(run: RowMapping, tool_call_id: str) -> str:
    """Return when the result is given up, in RFC 3339: such texts are ordered as their times."""
    pending, own = run["pending_input"], _own_ends(run)
    # The row has the first of all these times.
    of_all: str = pending["expires_at"] if own else rfc3339(run["input_expires_at"])
    return min(of_all, own.get(tool_call_id, of_all))


def _own_ends(run: RowMapping) -> dict[str, str]:
    """Return when those of the awaited calls are given up that have a time of their own."""
    calls = run["pending_input"]["calls"] if _awaits_results(run) else ()
    return {call["tool_call_id"]: call["expires_at"] for call in calls if "expires_at" in call}


def _is_late(run: RowMapping, call: Row[Any], time: str) -> bool:
    """Return whether the call was given up, or is to be, since its own time is over."""
    if call.done_at is not None:
        return bool(call.is_error and call.output == TOO_LATE)
    ends = _own_ends(run)
    return call.tool_call_id in ends and ends[call.tool_call_id] <= time


def _is_same(call: Row[Any], result: CallResult) -> bool:
    output = call.output if call.whole_output is None else call.whole_output
    return bool(call.is_error == result.is_error and output == clean(result.output))


def _store(sql: Connection, run_id: UUID, results: Sequence[CallResult]) -> None:
    cut = [tool_output.cut(result.output) for result in results]
    sql.exec_driver_sql(
        _STORE,
        {
            "run_id": run_id,
            "tool_call_ids": TextArray(result.tool_call_id for result in results),
            "outputs": TextArray(shown for shown, _ in cut),
            "errors": plain_array(result.is_error for result in results),
            "whole_outputs": TextArray(
                tool_output.kept(result.output, characters)
                for result, (_, characters) in zip(results, cut, strict=True)
            ),
        },
    )
