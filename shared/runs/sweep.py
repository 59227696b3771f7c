"""The sweep, which finds what no notification reports: lost owners, lost cancels, deadlines.

Every `web` and every `worker` process asks for the turn to sweep every two seconds, and the first
one in a period gets it: a process that dies or freezes is replaced in the next. An advisory lock
keeps a sweep that takes longer than the period alone. Whatever is done twice all the same is
harmless: each change is guarded by the run's row lock and raises its fence.
"""

import logging
import time
from collections.abc import Callable
from decimal import Decimal
from functools import wraps

from sqlalchemy import Connection, RowMapping, func, or_, select, text

from arkloop.shared import metrics
from arkloop.shared.background_loop import BackgroundLoop
from arkloop.shared.billing import budgets
from arkloop.shared.billing.credits import CREDITS_PER_USD
from arkloop.shared.catalog import published_personas
from arkloop.shared.catalog.personas import InvalidPersona, Persona
from arkloop.shared.delivery import deliveries
from arkloop.shared.errors import PersonaNotFound, Unavailable
from arkloop.shared.events.types import RunError
from arkloop.shared.outage_log import reason_of
from arkloop.shared.runs import (
    agent_endings,
    agent_workers,
    commands,
    endings,
    held_runs,
    overrides,
    pending_calls,
    recovery,
    revocations,
    tidying,
    trees,
    waiting_runs,
)
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.swept_batches import BATCH, Left, isolated, with_reservations_locked
from arkloop.shared.storage import postgres, rewinds
from arkloop.shared.storage.arrays import is_among
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.postgres import MAINTENANCE_TIMEOUTS
from arkloop.shared.storage.signals import Wake
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.accounts import MOVED_ORGS
from arkloop.shared.storage.tables.runs import UNHELD_AND_CANCELLED, agent_runs, runs

log = logging.getLogger(__name__)

LOCK_KEY = 0x7377656570  # "sweep"
#: A step that leaves something to do is repeated for this long: the others must not be late.
REPEAT_SECONDS = 1.0
#: As long as this where it has passed over runs, as by their locks: others may be behind them.
PASS_OVER_SECONDS = 5.0
#: The key of a worker that cannot hold a lock; only the lease says whether it lives.
NO_LOCK = 0

EXPIRED = RunError("input.expired", commands.UNANSWERED, False)
OVERDUE = RunError("run.timeout", "The run took longer than its persona allows.", True)
#: An agent worker that has not ended a run for this long after a cancel does not get to it.
CANCEL_SECONDS = 5

#: Literal text: see `tables.IS_ACTIVE`.
WAITING = text("state = 'waiting'")

#: The part of the period after which another process may sweep. Less than all of it: the process
#: that has swept last asks again after its period, and must not come a moment too early.
TURN = 0.75

_TAKE_TURN = statement(__package__, "take_turn")
_CORRECT_TIMES = statement(__package__, "correct_times")
_FIND_CANCELLED_IN_TURNS = statement(__package__, "find_cancelled_in_turns")
_FIND_LEAKED_RESERVATIONS = statement(__package__, "find_leaked_reservations")


def sweep(connections: Connections) -> None:
    """Sweep everything once; does nothing if another process is sweeping.

    Raises:
        Unavailable: Postgres is out of reach.
    """
    # Each in a transaction of its own: what money their runs hold is locked in one order.
    for settle in (
        recovery.recover_batch,
        _whole(revocations.cancel_left),
        _whole(revocations.cancel_runs_of_former_members),
        _whole(revocations.cancel_runs_of_suspended_orgs),
        trees.cancel_all_orphans,
        _whole(trees.start_held),
        _cancel_unheld,
        _expire_inputs,
        _end_overdue_agents,
        _release_leaked_reservations,
    ):
        left, is_left, began = Left(), True, time.monotonic()
        while is_left:
            try:
                with connections.transaction() as tx:
                    if not tx.sql.scalar(select(func.pg_try_advisory_xact_lock(LOCK_KEY))):
                        return
                    is_left = bool(settle(tx, left))
                seconds = PASS_OVER_SECONDS if left.ids else REPEAT_SECONDS
                is_left = is_left and time.monotonic() < began + seconds
            except Unavailable as error:
                if not postgres.is_locked(error.__cause__):
                    raise
                log.warning("%s is left to the next sweep: %s", settle.__name__, reason_of(error))
                is_left = False
        left.log(settle.__name__)
    waiting_runs.start_due(connections)


def _whole(settle: Callable[[Transaction], object]) -> Callable[[Transaction, Left], object]:
    """Return a step that leaves no runs to the next sweep in the form of those that do."""
    return wraps(settle)(lambda tx, _left: settle(tx))


def take_turn(connections: Connections) -> bool:
    """Take the turn to sweep, and correct what a clock that was set back has left in its way.

    Returns False if another process has had the turn in this period.

    Raises:
        Unavailable: Postgres is out of reach.
    """
    period = connections.settings.sweep_seconds
    with connections.transaction() as tx:
        taken = tx.sql.exec_driver_sql(_TAKE_TURN, {"seconds": TURN * period}).rowcount == 1
        if taken:
            tx.sql.exec_driver_sql(_CORRECT_TIMES)
            deliveries.correct_times(tx)
        return taken


def _cancel_unheld(tx: Transaction, left: Left) -> bool:
    """End a batch of runs that no worker holds, where a cancel was requested but not carried out.

    Their key was revoked, or they went back to the queue while somebody cancelled them. Returns
    whether more may be left.
    """
    turns = tx.sql.exec_driver_sql(_FIND_CANCELLED_IN_TURNS, {"most": BATCH, "left": left.ids})
    ids = turns.scalars().all()
    unheld = select(*runs.c).where(UNHELD_AND_CANCELLED, runs.c.id.in_(ids))
    rows = tx.sql.execute(unheld.with_for_update(skip_locked=True)).mappings().all() if ids else ()
    for run in with_reservations_locked(tx, rows, left):
        with isolated(tx, run, left):
            endings.end_unclaimed(tx, run, RunState.CANCELLED)
    return len(ids) == BATCH


def _expire_inputs(tx: Transaction, left: Left) -> bool:
    """End, or continue, a batch of waits that are over. Returns whether more may be left."""
    waiting = tx.sql.execute(
        select(*runs.c)
        .where(WAITING, runs.c.input_expires_at < func.now(), runs.c.org_id.not_in(MOVED_ORGS))
        .where(~is_among(runs.c.id, left.ids))
        .order_by(runs.c.input_expires_at)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    rows = waiting.mappings().all()
    for run in with_reservations_locked(tx, rows, left):
        with isolated(tx, run, left):
            if pending_calls.give_up_late(tx, run):
                continue
            if (run["pending_input"] or {}).get("on_expiry") == "continue":
                commands.resume_expired(tx, run)
            else:
                endings.end_unclaimed(tx, run, RunState.FAILED, EXPIRED)
    return len(rows) == BATCH


def _end_overdue_agents(tx: Transaction, left: Left) -> bool:
    """End a batch of runs of agent workers whose time is over, or that ignore a cancel.

    Returns whether more may be left.
    """
    grace = func.make_interval(0, 0, 0, 0, 0, 0, CANCEL_SECONDS)
    is_cancelled = runs.c.cancel_requested_at < func.now() - grace
    overdue = tx.sql.execute(
        select(*runs.c, agent_runs.c.lands)
        .join(agent_runs, agent_runs.c.run_id == runs.c.id)
        .where(
            runs.c.state == RunState.EXECUTING,
            or_(agent_runs.c.deadline_at < func.now(), is_cancelled),
            ~is_among(runs.c.id, left.ids),
        )
        .order_by(runs.c.id)
        .limit(BATCH)
        .with_for_update(of=runs, skip_locked=True)
    )
    rows = overdue.mappings().all()
    for run in with_reservations_locked(tx, rows, left):
        with isolated(tx, run, left):
            if run["cancel_requested_at"] is not None:
                endings.end_unclaimed(tx, run, RunState.CANCELLED)
            elif run["lands"]:
                agent_endings.stop(held_runs.of_row(tx, run), _persona_of(tx.sql, run), OVERDUE)
            else:
                endings.end_unclaimed(tx, run, RunState.FAILED, OVERDUE)
            topic = agent_workers.news_topic(run["owner"])
            tx.after_commit.append(Wake(topic, str(run["id"]), everyone=True))
    return len(rows) == BATCH


def _persona_of(sql: Connection, run: RowMapping) -> Persona:
    """Return the persona of a run; a plain one where this release cannot read it."""
    key, _, version = run["persona_id"].partition("@")
    row = published_personas.find(sql, run["org_id"], key, version)
    try:
        if row is not None:
            return overrides.apply(published_personas.persona_of(row), run["options"])
    except (InvalidPersona, PersonaNotFound):
        log.warning("the persona %s of run %s cannot be read", run["persona_id"], run["id"])
    return Persona(key=key, version=version)


def _release_leaked_reservations(tx: Transaction, left: Left) -> None:
    """Release the reservations of runs that an operator has deleted.

    Budgets count what the run had cost when it last reserved. Charged is what of that credits pay
    for, at most what it had reserved of them: an org pays for its own models elsewhere.
    """
    leaked = tx.sql.exec_driver_sql(_FIND_LEAKED_RESERVATIONS, {"batch": BATCH})
    for run in with_reservations_locked(tx, leaked.mappings().all(), left):
        with isolated(tx, run, left):
            log.warning("releasing the reservation of deleted run %s", run["id"])
            cost, held = run["cost_usd"], Decimal(run["held_credits"]) / CREDITS_PER_USD
            own = cost - min(run["servers_usd"], held)
            budgets.release(tx, org_id=run["org_id"], run_id=run["id"], cost_usd=cost, own_usd=own)


def start(connections: Connections) -> BackgroundLoop:
    """Sweep for as long as the process lives, or until the loop is stopped."""
    own = connections.with_pool(application="arkloop-sweep", size=1, timeouts=MAINTENANCE_TIMEOUTS)

    def step() -> None:
        rewinds.check(own)
        if not take_turn(own):
            return
        began = time.monotonic()
        sweep(own)
        metrics.SWEEPS.add(time.monotonic() - began)
        tidying.tidy_in_turn(own)

    return BackgroundLoop(
        "sweep",
        step,
        seconds=connections.settings.sweep_seconds,
        first_seconds=0,  # a restored database is noticed before much is read from Redis
        before=own.wait_for_schema,
        after=own.close_pool,
    )
