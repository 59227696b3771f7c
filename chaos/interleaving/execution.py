"""The execution of a claimed run in an interleaving: what a worker writes, without a model."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from arkloop.shared import times
from arkloop.shared.claim import Claim
from arkloop.shared.errors import LeaseLost
from arkloop.shared.events import event_log, types
from arkloop.shared.events.stored_events import StoredEvent, encode
from arkloop.shared.events.usage import Usage
from arkloop.shared.ids import new_id
from arkloop.shared.runs import claims, offered_messages
from arkloop.shared.runs.endings import Ending, Outcome, RunEnder
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.transitions import Totals
from arkloop.shared.storage.arrays import plain_array
from arkloop.worker.process import event_writer
from chaos.interleaving.actor import Actor
from chaos.interleaving.trace import Doing

AN_HOUR = timedelta(hours=1)


def step(worker: Actor, claim: Claim) -> Claim:
    """Take what is offered to the run, as the worker does before it calls the model."""
    worker.does = Doing("look")
    with worker.connections.reading() as sql:
        offered = offered_messages.find(sql, claim.run_id)
    if not offered:
        return claim
    worker.does = Doing("step", run_id=claim.run_id)
    steered = [types.RunSteered(str(row.id), row.content, row.parts) for row in offered]
    stored = [
        encode(claim.last_seq + number, event, times.now())
        for number, event in enumerate(steered, 1)
    ]
    while not _is_written(worker, claim, stored):
        worker.pause()
    worker.does = Doing("settle", run_id=claim.run_id)
    with worker.connections.transaction() as tx:
        offered_messages.settle(tx, claim, [row.id for row in offered])
    return replace(claim, last_seq=stored[-1].seq)


def _is_written(worker: Actor, claim: Claim, stored: list[StoredEvent]) -> bool:
    """Write events as the worker's event writer does; False if somebody has locked the row.

    Raises:
        LeaseLost
    """
    with worker.connections.statement() as tx:
        rows = tx.sql.exec_driver_sql(
            event_writer._WRITE,
            {
                "server": claim.server,
                "ids": plain_array([claim.run_id]),
                "fences": plain_array([claim.fence] * len(stored)),
                **event_log.columns([(claim.run_id, stored)]),
            },
        ).all()
    if rows and (rows[0].fence, rows[0].state) != (claim.fence, RunState.EXECUTING):
        raise LeaseLost()
    return bool(rows)


def park(worker: Actor, claim: Claim) -> bool:
    """Let the run wait for a person; False if it is being cancelled."""
    worker.does = Doing("park", run_id=claim.run_id)
    request_id = str(new_id())
    asked = types.RunWaitingForInput(
        request_id=request_id, kind="question", prompt="?", expires_at=""
    )
    with worker.connections.transaction() as tx:
        return claims.park(
            tx,
            claim,
            [encode(claim.last_seq + 1, asked, times.now())],
            pending_input={"request_id": request_id, "kind": "question", "prompt": "?"},
            expires_at=datetime.now(UTC) + AN_HOUR,
            totals=Totals(),
        )


def end(worker: Actor, ender: RunEnder, claim: Claim) -> None:
    """Complete the run, or end it as cancelled if somebody has requested that."""
    worker.does = Doing("end", run_id=claim.run_id)
    state = RunState.COMPLETED
    while True:
        last: types.Event = types.RunCompleted(None, Usage(), Totals().cost_usd, "stop")
        if state is RunState.CANCELLED:
            last = types.RunCancelled(Usage(), Totals().cost_usd)
        outcome = ender(
            Ending(
                claim=claim,
                state=state,
                stored=[encode(claim.last_seq + 1, last, times.now())],
                totals=Totals(),
                message=(new_id(), f"answer of {claim.run_id}"),
            )
        )
        if outcome in (Outcome.ENDED, Outcome.LOST):
            return
        if outcome is Outcome.CANCELLED:
            state = RunState.CANCELLED
        if outcome is Outcome.LOCKED:
            worker.pause()
