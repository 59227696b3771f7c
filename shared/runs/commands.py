"""A run's life as the API and the sweep change it; `claims.py` has the worker's side.

The row is the truth, the Celery message may be lost. Changes here happen under
the row lock of a run that no worker holds; of a held run only the wish to
cancel is written. `states.py` draws the states.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, RowMapping, and_, func, insert, select, update

from arkloop.shared import client_data
from arkloop.shared.actors import Actor
from arkloop.shared.agents import approvals
from arkloop.shared.agents.approvals import ApprovalReply
from arkloop.shared.audit import audit_log
from arkloop.shared.audit.audit_log import NewEntry
from arkloop.shared.billing import usage_reports
from arkloop.shared.catalog.mcp_access import HashedPage, is_page
from arkloop.shared.errors import (
    Forbidden,
    InvalidRequest,
    NotActive,
    NotWaiting,
    RunNotFound,
    StaleInput,
)
from arkloop.shared.runs import agent_queue, approvers, form_replies, pending_calls, trees
from arkloop.shared.runs.pending_calls import CallResult
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.transitions import queued, waiting_is_over
from arkloop.shared.storage import signals
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.tables.runs import inputs, runs, sub_runs
from arkloop.shared.storage.tables.threads import threads
from arkloop.shared.threads.visibility import visible

#: Of a person's answer, in UTF-8.
MAX_INPUT_BYTES = 32_768
#: Runs that one statement queues again, where thousands have waited for the same thing.
VISITS_AT_ONCE = 500
#: What the model reads where a person was asked and did not answer.
UNANSWERED = "No answer was given in time."
#: What it reads where no result of a call was sent.
NO_RESULT = "No result was sent in time; the call may have taken effect."
_OR_AS_WORKER = "For results of HTTP tools alone, `tools.work` is enough."


@dataclass(frozen=True, slots=True)
class AnsweredApproval:
    """A request for approval, as `pending_input` had it, and the reply to it."""

    request: Mapping[str, Any]
    reply: ApprovalReply


def cancel(tx: Transaction, actor: Actor, run_id: UUID) -> bool:
    """Cancel a run with all sub-runs below it: end what no worker holds, and ask the owners of
    the others to.

    Does nothing for a run that has ended; returns whether the run had not.

    Raises:
        RunNotFound, Forbidden
    """
    while not trees.cancel(tx, actor, run_id):
        if RunState(_find(tx.sql, actor, run_id)["state"]).is_terminal:
            return False
        # It has changed in this very moment.
    return True


def cancel_and_record(
    connections: Connections, actor: Actor, run_id: UUID, entry: NewEntry
) -> bool:
    """Cancel a run as `cancel` does, and record `entry` in the audit log if it had not ended.

    For a run that a worker is executing, which most cancels are for, this is a single statement.
    Returns whether the run had not ended.

    Raises:
        RunNotFound, Forbidden, Unavailable
    """
    with connections.statement() as tx:
        if trees.cancel_held(tx, actor, run_id, entry):
            return True
    with connections.transaction() as tx:
        if is_cancelled := cancel(tx, actor, run_id):
            audit_log.record(tx, entry)
    return is_cancelled


def answer(
    tx: Transaction,
    actor: Actor,
    run_id: UUID,
    content: str,
    request_id: UUID | None,
    results: Sequence[CallResult] = (),
) -> AnsweredApproval | None:
    """Store a person's answer and queue the run again; returns what was approved or denied.

    The same answer to the same `request_id` again changes nothing. `results` are of calls of client
    tools that the run makes after this: each counts once the run makes its call.

    Raises:
        RunNotFound, Forbidden
        ApprovalReserved, EditReserved: the actor is an end user, who may not reply like this.
        NotWaiting: no request is open any more. NotActive: the run has ended.
        StaleInput: the request is another one, or has another answer.
        InvalidRequest: the answer is blank or too long, or a malformed reply to a request for
            approval.
    """
    # Protocols of clients have answers in messages and payloads, which may be larger.
    if not content.strip() or len(content.encode("utf-8", "replace")) > MAX_INPUT_BYTES:
        raise InvalidRequest(content=[f"must have 1 to {MAX_INPUT_BYTES} bytes, and not be blank"])
    run = _find(tx.sql, actor, run_id, lock=True)
    if request_id is not None:
        stored = tx.sql.scalar(
            select(inputs.c.content).where(
                inputs.c.run_id == run_id, inputs.c.request_id == request_id
            )
        )
        if stored is not None:
            if stored != content:
                raise StaleInput()
            return None
    if RunState(run["state"]).is_terminal:
        raise NotActive()
    if run["state"] != RunState.WAITING:
        raise NotWaiting()
    if run["pending_input"]["kind"] == pending_calls.KIND:
        raise NotWaiting("The run is waiting for tool results: POST …/tool-results.")
    if request_id not in (None, UUID(run["pending_input"]["request_id"])):
        raise StaleInput()
    if run["input_expires_at"] <= tx.sql.scalar(select(func.clock_timestamp())):
        raise NotWaiting("The input request has expired.")  # the sweep will say what comes of it
    reply = None
    if run["pending_input"]["kind"] == "tool_confirmation":
        # What cannot be understood is refused while it can be corrected.
        reply = approvals.read(content)
        approvers.check(tx.sql, actor, run, reply)
    if run["pending_input"]["kind"] in form_replies.KINDS:
        form_replies.check(run["pending_input"], content)
    early = pending_calls.as_early(tx.sql, run_id, results)
    _requeue_with_input(tx, [run], content, actor.user_id, early)
    return None if reply is None else AnsweredApproval(run["pending_input"], reply)


def answer_visit(tx: Transaction, run_id: UUID, url: str, *, is_accepted: bool) -> bool:
    """Queue the run again if it waits for somebody to visit this page, which has happened.

    Return False if the run has ended, so that the visit is of no use.
    """
    query = select(*runs.c).where(runs.c.id == run_id).with_for_update(key_share=True)
    run = tx.sql.execute(query).mappings().one_or_none()
    if run is None or RunState(run["state"]).is_terminal:
        return False
    if run["state"] == RunState.WAITING and run["pending_input"].get("url") == url:
        reply = form_replies.ACCEPTED if is_accepted else form_replies.DECLINED
        _requeue_with_input(tx, [run], reply, None)
    return True


def answer_visits(tx: Transaction, pages: Iterable[HashedPage]) -> None:
    """Let the runs that wait for these pages, which were closed, make their calls again."""
    _reply_to_visits(tx, pages, form_replies.ACCEPTED)


def decline_visits(tx: Transaction, pages: Iterable[HashedPage]) -> None:
    """Let the runs that wait for these pages, which nobody will visit, continue without access."""
    _reply_to_visits(tx, pages, form_replies.DECLINED)


def give_results(
    tx: Transaction,
    actor: Actor,
    run_id: UUID,
    results: Sequence[CallResult],
    *,
    is_from_page: bool = False,
    skips_late: bool = False,
) -> None:
    """Store results of tool calls that are made elsewhere; see `pending_calls.give`.

    A page is in the hands of its user, also if somebody of the org has issued its ticket. HTTP
    tools are called in all runs of the org: with `tools.work` their server sends the results.

    Raises:
        RunNotFound, Forbidden
        ToolResultConflict, NotWaiting, NotActive, InvalidRequest
    """
    is_from_page |= actor.end_user_id is not None
    try:
        run = _find(tx.sql, actor, run_id, lock=True)
    except (RunNotFound, Forbidden) as error:
        # Only then, and for these calls alone: else it would show which private runs there are.
        is_worker = "tools.work" in actor.permissions
        if isinstance(error, Forbidden) and not is_worker and not is_from_page:
            raise Forbidden(f"{error} {_OR_AS_WORKER}") from None
        is_server = is_worker and not is_from_page
        if not is_server or not pending_calls.are_of_http_tools(tx.sql, run_id, results):
            raise
        run = _find(tx.sql, actor, run_id, lock=True, of_org=True)
    pending_calls.give(tx, run, results, is_from_page=is_from_page, skips_late=skips_late)


def change(tx: Transaction, actor: Actor, run_id: UUID, metadata: Mapping[str, str | None]) -> None:
    """Merge metadata into that of a run, active or ended, and of its usage in reports.

    Raises:
        RunNotFound, Forbidden
        InvalidRequest: the run would have too much of it.
    """
    run = _find(tx.sql, actor, run_id, lock=True)
    after = client_data.merged(run["metadata"], metadata)
    tx.sql.execute(update(runs).where(runs.c.id == run_id).values(metadata=after))
    # After the lock: if the run has ended meanwhile, its usage is there to be seen.
    usage_reports.set_metadata(tx, run_id, after)


def resume_expired(tx: Transaction, run: RowMapping) -> None:
    """Queue a waiting run again whose request has expired; called by the sweep."""
    if run["pending_input"]["kind"] == pending_calls.KIND:
        pending_calls.expire(tx, run, NO_RESULT)
        return
    if run["pending_input"]["kind"] in form_replies.KINDS:
        _requeue_with_input(tx, [run], form_replies.NO_REPLY, None)
        return
    is_approval = run["pending_input"]["kind"] == "tool_confirmation"
    denial = json.dumps({"decision": "deny", "reason": UNANSWERED})
    _requeue_with_input(tx, [run], denial if is_approval else UNANSWERED, None)


def _reply_to_visits(tx: Transaction, pages: Iterable[HashedPage], reply: str) -> None:
    """Queue again those of the runs that wait for their page: thousands may wait for one server."""
    hashes: dict[UUID, set[bytes]] = {}
    for run_id, state_hash in pages:
        hashes.setdefault(run_id, set()).add(state_hash)
    run_ids = sorted(hashes)  # in one order: another transaction may close some of them
    for start in range(0, len(run_ids), VISITS_AT_ONCE):
        is_among = runs.c.id.in_(run_ids[start : start + VISITS_AT_ONCE])
        columns = (runs.c.id, runs.c.org_id, runs.c.agent, runs.c.owner, runs.c.pending_input)
        query = select(*columns).where(is_among, runs.c.state == RunState.WAITING)
        # The deepest first, as at the end of a sub-run.
        query = query.outerjoin(sub_runs, sub_runs.c.run_id == runs.c.id)
        query = query.order_by(func.coalesce(sub_runs.c.depth, 0).desc(), runs.c.id)
        locked = query.with_for_update(of=runs, key_share=True)
        found = tx.sql.execute(locked).mappings().all()
        if waiting := [run for run in found if _waits_for_page(run, hashes[run["id"]])]:
            _requeue_with_input(tx, waiting, reply, None)


def _waits_for_page(run: RowMapping, hashes: Iterable[bytes]) -> bool:
    url = run["pending_input"].get("url") or ""
    return any(is_page(url, state_hash) for state_hash in hashes)


def _requeue_with_input(
    tx: Transaction,
    waiting: Sequence[RowMapping],
    content: str,
    user_id: UUID | None,
    results: list[dict[str, Any]] | None = None,
) -> None:
    """Store what the runs' open requests get, from this user or from nobody, and queue them."""
    given = [
        {
            "run_id": run["id"],
            "request_id": UUID(run["pending_input"]["request_id"]),
            "content": content,
            "created_by_user_id": user_id,
            "results": results,
        }
        for run in waiting
    ]
    tx.sql.execute(insert(inputs), given)
    are_these = runs.c.id.in_([run["id"] for run in waiting])
    tx.sql.execute(update(runs).where(are_these).values(**queued("input"), **waiting_is_over()))
    tx.after_commit += [signals.Input(run["id"], run["owner"]) for run in waiting]
    tx.after_commit += [
        agent_queue.announce(run["id"], run["org_id"], run["agent"])
        for run in waiting
        # Else its owner is in the middle of the call, and has this signal. Another worker would
        # find the run in Postgres a second later, and without that call.
        if not run["pending_input"].get("is_held")
    ]


# ---- pieces --------------------------------------------------------------------------


def _find(
    sql: Connection, actor: Actor, run_id: UUID, *, lock: bool = False, of_org: bool = False
) -> RowMapping:
    """Return a run that the actor may write, or with `of_org` any run of the actor's org."""
    is_of_org = and_(threads.c.org_id == actor.org_id, threads.c.deleted_at.is_(None))
    query = (
        select(*runs.c)
        .join(threads, threads.c.id == runs.c.thread_id)
        .where(runs.c.id == run_id, is_of_org if of_org else visible(actor))
    )
    if lock:
        query = query.with_for_update(of=runs, key_share=True)
    run = sql.execute(query).mappings().one_or_none()
    if run is None:
        raise RunNotFound()
    if not of_org:
        actor.check_may_write("the run", run["created_by_user_id"])
    return run
