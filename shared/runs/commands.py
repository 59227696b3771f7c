"""A run's life as the API and the sweep change it; `claims.py` has the worker's side.

The row is the truth, the Celery message is a hint. Changes here happen under
the row lock of a run that no worker holds; of a held run only the wish to
cancel is written. `status.py` draws the states.
"""

import json
from uuid import UUID

from sqlalchemy import (
    Boolean,
    Connection,
    RowMapping,
    bindparam,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from shared.actors import Actor
from shared.errors import (
    NotActive,
    NotWaiting,
    RunNotFound,
    StaleInput,
)
from shared.runs import approvals, unheld_endings
from shared.runs.states import RunState
from shared.runs.transitions import queued
from shared.storage import signals
from shared.storage.connections import Transaction
from shared.storage.hints import GroupedHint
from shared.storage.tables.runs import inputs, runs
from shared.storage.tables.threads import threads
from shared.threads.visibility import visible

#: What the model is told where a person was asked and did not answer.
UNANSWERED = "No answer was given in time."


_REQUEST_CANCEL = (
    update(runs)
    .where(
        runs.c.id == bindparam("run_id"),
        runs.c.state == literal_column("'executing'"),
        threads.c.id == runs.c.thread_id,
        visible(bindparam("actor_org_id"), bindparam("actor_id")),
        or_(
            bindparam("writes_all", type_=Boolean),
            runs.c.created_by_user_id == bindparam("actor_id"),
        ),
    )
    .values(
        cancel_requested_at=func.coalesce(runs.c.cancel_requested_at, func.now()),
        cancel_requested_by=func.coalesce(runs.c.cancel_requested_by, bindparam("actor_id")),
    )
    .returning(runs.c.owner, runs.c.cancel_requested_by)
)


def cancel_executing(tx: Transaction, actor: Actor, run_id: UUID) -> bool:
    """Ask the owner of an executing run to end it, in one statement.

    False, and nothing done, if it is not executing or not the actor's to cancel.
    """
    wish = tx.sql.execute(
        _REQUEST_CANCEL,
        {
            "run_id": run_id,
            "actor_org_id": actor.org_id,
            "actor_id": actor.user_id,
            "writes_all": actor.writes_all,
        },
    ).one_or_none()
    if wish is None:
        return False
    tx.after_commit.append(lambda: signals.send_cancel(tx.connections, run_id, *wish))
    return True


def cancel(tx: Transaction, actor: Actor, run_id: UUID) -> None:
    """End a queued or waiting run now; ask the owner of an executing one to.

    Does nothing for a run that has ended.

    Raises:
        RunNotFound, Forbidden
    """
    run = _lock(tx.sql, actor, run_id)
    if run["state"] in (RunState.QUEUED, RunState.WAITING):
        unheld_endings.end(tx, run, RunState.CANCELLED)
    elif run["state"] == RunState.EXECUTING:
        cancel_executing(tx, actor, run_id)


def answer(
    tx: Transaction, actor: Actor, run_id: UUID, content: str, request_id: UUID | None
) -> None:
    """Store a person's answer and queue the run again.

    The same answer to the same `request_id` again changes nothing.

    Raises:
        RunNotFound, Forbidden
        NotWaiting: no request is open any more. NotActive: the run has ended.
        StaleInput: the request is another one, or has another answer.
        InvalidRequest: a malformed reply to a request for approval.
    """
    run = _lock(tx.sql, actor, run_id)
    if request_id is not None:
        stored = tx.sql.scalar(
            select(inputs.c.content).where(
                inputs.c.run_id == run_id, inputs.c.request_id == request_id
            )
        )
        if stored is not None:
            if stored != content:
                raise StaleInput()
            return
    if RunState(run["state"]).is_terminal:
        raise NotActive()
    if run["state"] != RunState.WAITING:
        raise NotWaiting()
    if request_id not in (None, UUID(run["pending_input"]["request_id"])):
        raise StaleInput()
    if run["input_expires_at"] <= tx.sql.scalar(select(func.clock_timestamp())):
        raise NotWaiting("The input request has expired.")  # the sweep will say what comes of it
    if run["pending_input"]["kind"] == "tool_confirmation":
        approvals.read(content)  # what cannot be understood is refused while it can be corrected
    _go_on(tx, run, content, actor.user_id)


def go_on_unanswered(tx: Transaction, run: RowMapping) -> None:
    """Queue a waiting run again whose request nobody has answered in time; by the sweep."""
    is_approval = run["pending_input"]["kind"] == "tool_confirmation"
    denial = json.dumps({"decision": "deny", "reason": UNANSWERED})
    _go_on(tx, run, denial if is_approval else UNANSWERED, None)


def _go_on(tx: Transaction, run: RowMapping, content: str, user_id: UUID | None) -> None:
    """Store what the open request gets, from this user or from nobody, and queue the run again."""
    tx.sql.execute(
        insert(inputs).values(
            run_id=run["id"],
            request_id=UUID(run["pending_input"]["request_id"]),
            content=content,
            created_by_user_id=user_id,
        )
    )
    waited = func.extract("epoch", func.now() - runs.c.waiting_since) * 1000
    tx.sql.execute(
        update(runs)
        .where(runs.c.id == run["id"])
        .values(
            **queued("input"),
            waiting_ms=runs.c.waiting_ms + waited,
            waiting_since=None,
            input_expires_at=None,
            pending_input=None,
        )
    )
    tx.after_commit.append(lambda: signals.send_input(tx.connections, run["id"], run["owner"]))
    tx.after_commit.append(GroupedHint(tx.connections.enqueue, run["id"]))


# ---- pieces --------------------------------------------------------------------------


def _lock(sql: Connection, actor: Actor, run_id: UUID) -> RowMapping:
    run = (
        sql.execute(
            select(*runs.c)
            .join(threads, threads.c.id == runs.c.thread_id)
            .where(runs.c.id == run_id, visible(actor.org_id, actor.user_id))
            .with_for_update(of=runs)
        )
        .mappings()
        .one_or_none()
    )
    if run is None:
        raise RunNotFound()
    actor.check_may_write(run["created_by_user_id"])
    return run
