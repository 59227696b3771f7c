"""The ends of runs, each by its fence: by their workers, many in one statement, or without one.

State, terminal event, usage, charge and the thread's message of a run are stored together or not
at all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from uuid import UUID

from sqlalchemy import Connection, RowMapping, delete, func, select, true, update

from arkloop.shared import ids
from arkloop.shared.billing import budgets
from arkloop.shared.billing.credits import credits_of
from arkloop.shared.claim import Claim
from arkloop.shared.events import event_log, types
from arkloop.shared.events.plain import clean
from arkloop.shared.events.stored_events import StoredEvent
from arkloop.shared.events.types import RunError
from arkloop.shared.events.usage import TOKEN_FIELDS
from arkloop.shared.runs import interrupted_calls, sub_runs, waiting_runs
from arkloop.shared.runs.ended import Ended
from arkloop.shared.runs.states import WAITING_FOR_THREAD, RunState
from arkloop.shared.runs.transitions import Totals, recorded_totals, waiting_is_over
from arkloop.shared.storage.arrays import ByteArray, TextArray, plain_array
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.group_commit import GroupCommit
from arkloop.shared.storage.notifications import Reached
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.runs import agent_runs, runs
from arkloop.shared.usd import MAX_COST_USD


@dataclass(frozen=True, slots=True)
class TakenOver:
    """The right to end a run that no worker holds: it has the row's lock and its fence."""

    run_id: UUID
    org_id: UUID
    fence: int
    parent_run_id: UUID | None = None
    server: None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The end of a run.

    `stored` are the events not stored yet, of which the last is the terminal one. `message` is
    (id, content) of what the thread keeps; it is partial unless the run has completed.
    `stop_reason` is that of a completed run, `error` that of a failed one. `output_is_json`: the
    message is the JSON of an output schema.
    `has_reservation`: the run may have reserved money, so that it ends by `end_with_reservation`.
    """

    claim: Claim | TakenOver
    state: RunState
    stored: Sequence[StoredEvent]
    totals: Totals
    message: tuple[UUID, str] | None = None
    stop_reason: str | None = None
    output_is_json: bool = False
    error: RunError | None = None
    has_reservation: bool = False
    #: The run's events were looked for since Postgres was restarted or failed over.
    is_verified: bool = False

    @property
    def size(self) -> int:
        """Characters, about."""
        said = len(self.message[1]) if self.message else 0
        return said + sum(len(event.payload) for event in self.stored)


class Outcome(Enum):
    """The result of an ending; nothing was stored unless it is `ENDED`."""

    ENDED = "ended"
    CANCELLED = "cancelled"  # the run is being cancelled, which is another end
    LOST = "lost"  # the claim is over
    LOCKED = "locked"  # somebody has locked the row for a moment: try again
    FOLLOWED = "followed"  # others may wait for its thread: its end has to start the next one
    MOVED = "moved"  # Postgres was restarted or failed over, and has the run's events: try again


_END = statement(__package__, "end")


#: Characters, about, that each delivery to a webhook adds to an ending. Those of an org with many
#: endpoints take ten times as long as the end itself: no other org's run waits for them.
LEAST_OF_DELIVERY, MOST_OF_DELIVERY = 4_000, 20_000


class RunEnder:
    """Ends the runs of a worker process; those that end at the same time in one statement."""

    def __init__(
        self, connections: Connections, endpoints_of: Callable[[UUID], int] = lambda _org_id: 0
    ) -> None:
        """Create it; `endpoints_of` returns how many webhooks of an org have each of its ends."""
        self._connections = connections
        self._endpoints_of = endpoints_of
        self._end_with_others = GroupCommit(self._end, self._size)

    def __call__(self, ending: Ending) -> Outcome:
        """End a run; in a transaction of its own if it may have reserved money, or has followers.

        Raises:
            Unavailable
        """
        if not ending.has_reservation:
            outcome = self._end_with_others(ending)
            if outcome is not Outcome.FOLLOWED:
                return outcome
        with self._connections.transaction() as tx:
            if ending.has_reservation:
                return end_with_reservation(tx, ending)
            [outcome] = end(tx, [ending], with_followers=True)
            return outcome

    def _size(self, ending: Ending) -> int:
        each = min(LEAST_OF_DELIVERY + ending.size, MOST_OF_DELIVERY)
        return ending.size + self._endpoints_of(ending.claim.org_id) * each

    def _end(self, endings: Sequence[Ending]) -> list[Outcome]:
        with self._connections.statement() as tx:
            return end(tx, endings)


def end(
    tx: Transaction, endings: Sequence[Ending], *, with_followers: bool = False
) -> list[Outcome]:
    """End the runs, as many as possible, in one statement; returns the outcome of each.

    Their usage is recorded and, unless they may have a reservation, charged as owed. Only
    `with_followers`, in a transaction, runs end for whose threads others may wait.
    """
    batch = {ending.claim.run_id: ending.stored for ending in endings}
    rows = tx.sql.exec_driver_sql(_END, _parameters(endings, with_followers)).all()
    ended = {row.run_id: batch[row.run_id] for row in rows}
    if ended:
        tx.after_commit.append(Reached("worker.ended"))
        tx.after_commit.append(event_log.Publish(ended))
    if with_followers:
        for row in rows:
            waiting_runs.after_end(tx, row)
    missing = [ending for ending in endings if ending.claim.run_id not in ended]
    why = _why_not(tx.sql, missing, with_followers) if missing else {}
    moved = [
        replace(ending, is_verified=True)
        for ending in missing
        if why[ending.claim.run_id] is Outcome.MOVED
    ]
    if moved:
        ids_moved = [ending.claim.run_id for ending in moved]
        again = end(tx, moved, with_followers=with_followers)
        why |= dict(zip(ids_moved, again, strict=True))
    return [why.get(ending.claim.run_id, Outcome.ENDED) for ending in endings]


def end_with_reservation(tx: Transaction, ending: Ending) -> Outcome:
    """End a run that may have reserved money, and release it in the same transaction."""
    [outcome] = end(tx, [ending], with_followers=True)
    if outcome is Outcome.ENDED:
        if (parent_run_id := ending.claim.parent_run_id) is not None:
            _tell_parent(tx, parent_run_id, ending)
        _release(tx, ending)
    return outcome


def end_unclaimed(
    tx: Transaction,
    run: RowMapping,
    state: RunState,
    error: RunError | None = None,
    known: interrupted_calls.Known | None = None,
) -> bool:
    """End a run that no worker holds, as cancelled or failed.

    `run` is its row. False, and nothing done, if the run has changed since the row was read, or
    is to fail while it is being cancelled. Text that was streamed and not completed is kept as a
    partial message. The usage in the event log is charged, and so is the call in which its worker
    was lost, by the route and persona that are `known`: without them they are read for it, under
    the lock of the row where the caller has it. To end several runs in one transaction, call
    `sub_runs.lock_parents` and `budgets.lock` for them first.
    """
    if RunState(run["state"]) in WAITING_FOR_THREAD:
        return waiting_runs.withdraw(tx, run)
    was_claimed = run["fence"] > 0  # else nothing has come of it
    streamed = event_log.open_events(tx.sql, run["id"]) if was_claimed else []
    recorded = recorded_totals(tx.sql, run["id"]) if was_claimed else Totals()
    # An agent worker reports what its agent uses; nothing is known of a call in flight.
    totals = recorded
    if run["agent"] is None:
        totals = interrupted_calls.count(
            tx.connections, tx.sql, run["id"], recorded, streamed, known=known
        )
    claim = _take_over(tx.sql, run, state)
    if claim is None:
        return False
    closing: list[types.Event] = []
    if totals != recorded:
        closing.append(types.RunCost(totals.usage, totals.cost_usd, totals.routes))
    if error is None:
        by = run["superseded_by"]
        why = (by and str(by), run["cancel_reason"])
        closing.append(types.RunCancelled(totals.usage, totals.cost_usd, *why))
    else:
        closing.append(types.RunFailed(error, totals.usage, totals.cost_usd))
    text = event_log.text_of(streamed)
    ending = Ending(
        claim=claim,
        state=state,
        stored=event_log.number(tx, run["id"], closing),
        totals=totals,
        message=(ids.new_id(), text) if text else None,
        error=error,
        has_reservation=True,
    )
    # It does end: its row is locked, and the fence is its own.
    ended = tx.sql.exec_driver_sql(_END, _parameters([ending], with_followers=True)).one()
    waiting_runs.after_end(tx, ended)
    tx.after_commit.append(event_log.Publish({run["id"]: ending.stored}))
    tx.after_commit.append(Ended.of(run, state, None if error is None else error.code))
    if run["agent"] is not None:
        tx.sql.execute(delete(agent_runs).where(agent_runs.c.run_id == run["id"]))
    if run["parent_run_id"] is not None:
        _tell_parent(tx, run["parent_run_id"], ending, had_turn=sub_runs.had_turn(run))
    # Last: until the commit others wait for the rows that it locks.
    _release(tx, ending)
    return True


def _take_over(sql: Connection, run: RowMapping, state: RunState) -> TakenOver | None:
    """Lock the run's row and raise its fence, so that the run ends as that of a claim does."""
    may_end = runs.c.cancel_requested_at.is_(None)
    fence = sql.scalar(
        update(runs)
        .where(runs.c.id == run["id"], runs.c.fence == run["fence"], runs.c.state == run["state"])
        .where(true() if state == RunState.CANCELLED else may_end)
        .values(state=RunState.EXECUTING, fence=runs.c.fence + 1, **waiting_is_over())
        .returning(runs.c.fence)
    )
    return None if fence is None else TakenOver(run["id"], run["org_id"], fence)


def _tell_parent(
    tx: Transaction, parent_run_id: UUID, ending: Ending, *, had_turn: bool = True
) -> None:
    """Settle the call of the run that has started this one, in the transaction of its end."""
    sub_runs.ended(
        tx,
        parent_run_id,
        ending.claim.run_id,
        state=ending.state,
        output=ending.message[1] if ending.message else "",
        error=ending.error,
        had_turn=had_turn,
    )


def _release(tx: Transaction, ending: Ending) -> None:
    budgets.release(
        tx,
        org_id=ending.claim.org_id,
        run_id=ending.claim.run_id,
        cost_usd=ending.totals.cost_usd,
        own_usd=ending.totals.own_usd,
    )


def _parameters(
    endings: Sequence[Ending], with_followers: bool
) -> dict[str, str | TextArray | ByteArray | bool]:
    return {
        "with_followers": with_followers,
        **_columns_of_runs(endings),
        **_columns_of_usage(endings),
        **event_log.columns((ending.claim.run_id, ending.stored) for ending in endings),
    }


def _columns_of_runs(endings: Sequence[Ending]) -> dict[str, str | TextArray]:
    totals = [ending.totals.columns() for ending in endings]
    errors = [ending.error for ending in endings]
    messages = [ending.message for ending in endings]
    return {
        "ids": plain_array(ending.claim.run_id for ending in endings),
        "fences": plain_array(ending.claim.fence for ending in endings),
        "servers": plain_array(
            None
            if ending.is_verified or ending.claim.server is None
            # Quoted: it has a space.
            else f'"{ending.claim.server.isoformat()}"'
            for ending in endings
        ),
        "states": plain_array(ending.state.value for ending in endings),
        "stop_reasons": TextArray(ending.stop_reason for ending in endings),
        "json_outputs": plain_array(ending.output_is_json for ending in endings),
        "error_codes": TextArray(error.code if error else None for error in errors),
        "error_messages": TextArray(clean(error.message) if error else None for error in errors),
        "retryables": plain_array(error and error.retryable for error in errors),
        "steps": plain_array(of_run["steps"] for of_run in totals),
        **{name: plain_array(of_run[name] for of_run in totals) for name in TOKEN_FIELDS},
        "usage_sources": plain_array(of_run["usage_source"] for of_run in totals),
        "costs": plain_array(of_run["cost_usd"] for of_run in totals),
        "message_ids": plain_array(message and message[0] for message in messages),
        "contents": TextArray(message and clean(message[1]) for message in messages),
        "entry_ids": plain_array(ids.new_id() for _ in endings),
        "charges": plain_array(
            0 if one.has_reservation else credits_of(one.totals.cost_usd - one.totals.own_usd)
            for one in endings
        ),
    }


def _columns_of_usage(endings: Sequence[Ending]) -> dict[str, str | TextArray]:
    """Concatenate the parts of all runs."""
    used = [(ending.claim.run_id, row) for ending in endings for row in ending.totals.usage_rows]
    parts = [part for _, (_, part) in used]
    return {
        "used_by": plain_array(run_id for run_id, _ in used),
        "used_route_ids": TextArray(route_id for _, (route_id, _) in used),
        "used_models": TextArray(part.model for part in parts),
        **{
            f"used_{name}": plain_array(getattr(part.usage, name) for part in parts)
            for name in TOKEN_FIELDS
        },
        "used_usage_sources": plain_array(part.usage.source for part in parts),
        "used_costs": plain_array(min(part.cost_usd, MAX_COST_USD) for part in parts),
    }


def _why_not(
    sql: Connection, missing: Sequence[Ending], with_followers: bool
) -> dict[UUID, Outcome]:
    """Read without a lock: a claim that is over stays so; so do the wish to cancel and the flag."""
    rows = sql.execute(
        select(
            runs.c.id,
            runs.c.fence,
            runs.c.state,
            runs.c.cancel_requested_at,
            runs.c.has_followers,
            func.pg_postmaster_start_time().label("server"),
        ).where(runs.c.id.in_([ending.claim.run_id for ending in missing]))
    )
    found = {row.id: row for row in rows}
    outcomes: dict[UUID, Outcome] = {}
    for ending in missing:
        run_id = ending.claim.run_id
        row = found.get(run_id)
        if row is None or row.fence != ending.claim.fence or row.state != RunState.EXECUTING:
            outcomes[run_id] = Outcome.LOST
        elif row.cancel_requested_at is not None and ending.state != RunState.CANCELLED:
            outcomes[run_id] = Outcome.CANCELLED
        elif row.has_followers and not with_followers:
            outcomes[run_id] = Outcome.FOLLOWED
        elif not ending.is_verified and ending.claim.server not in (None, row.server):
            is_lost = event_log.is_cut_off(sql, run_id, ending.stored[0].seq)
            outcomes[run_id] = Outcome.LOST if is_lost else Outcome.MOVED
        else:
            outcomes[run_id] = Outcome.LOCKED
    return outcomes
