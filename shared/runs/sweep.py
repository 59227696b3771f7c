"""The sweep, which finds what no notification reports: lost owners, lost cancels, deadlines.

Every `web` and every `worker` process asks for the turn to sweep every two seconds, and the first
one in a period gets it: a process that dies or freezes is replaced in the next. An advisory lock
keeps a sweep that takes longer than the period alone. Whatever is done twice all the same is
harmless: each change is guarded by the run's row lock and raises its fence.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import Connection, RowMapping, func, or_, select, text, update
from sqlalchemy.exc import DBAPIError

from arkloop.shared import logs, metrics
from arkloop.shared.background_loop import BackgroundLoop
from arkloop.shared.billing import budgets
from arkloop.shared.billing.credits import CREDITS_PER_USD
from arkloop.shared.catalog import published_personas
from arkloop.shared.catalog.personas import InvalidPersona, Persona
from arkloop.shared.errors import PersonaNotFound
from arkloop.shared.events.types import STEP_TYPES, RunError, RunResumed, RunStarted
from arkloop.shared.runs import (
    agent_costs,
    agent_endings,
    agent_queue,
    agent_workers,
    commands,
    endings,
    held_runs,
    overrides,
    pending_calls,
    revocations,
    run_spans,
    sub_runs,
    tidying,
    trees,
    waiting_runs,
)
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.transitions import MAX_CRASHES, queued
from arkloop.shared.storage import postgres, rewinds
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.notifications import Recovered
from arkloop.shared.storage.postgres import MAINTENANCE_TIMEOUTS
from arkloop.shared.storage.signals import Wake
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.accounts import MOVED_ORGS
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import UNHELD_AND_CANCELLED, agent_runs, runs, workers

log = logging.getLogger(__name__)

LOCK_KEY = 0x7377656570  # "sweep"
BATCH = 100
#: A step that leaves something to do is repeated for this long: the others must not be late.
REPEAT_SECONDS = 1.0
#: Periods that may pass from one look to the next.
MOST_BETWEEN_LOOKS = 1.25
#: The key of a worker that cannot hold a lock; only the lease says whether it lives.
NO_LOCK = 0

CRASHED = RunError(
    "worker.crashed",
    "The worker executing this run crashed three times during the same step.",
    False,
)
EXPIRED = RunError("input.expired", commands.UNANSWERED, False)
OVERDUE = RunError("run.timeout", "The run took longer than its persona allows.", True)
#: An agent worker that has not ended a run for this long after a cancel does not get to it.
CANCEL_SECONDS = 5

#: Literal text: see `tables.IS_ACTIVE`.
WAITING = text("state = 'waiting'")

#: A process that sweeps tidies up as well, this often, or in each sweep while there is more.
TIDY_SECONDS = 30

#: The part of the period after which another process may sweep. Less than all of it: the process
#: that has swept last asks again after its period, and must not come a moment too early.
TURN = 0.75

_TAKE_TURN = statement(__package__, "take_turn")
_CORRECT_TIMES = statement(__package__, "correct_times")
_FIND_LOST = statement(__package__, "find_lost")
_DECLARE_LOST = statement(__package__, "declare_lost")
_FIND_CANCELLED_IN_TURNS = statement(__package__, "find_cancelled_in_turns")
_FIND_LEAKED_RESERVATIONS = statement(__package__, "find_leaked_reservations")


def sweep(connections: Connections) -> None:
    """Sweep everything once; does nothing if another process is sweeping.

    Raises:
        Unavailable: Postgres is out of reach.
    """
    # Each in a transaction of its own: what money their runs hold is locked in one order.
    for settle in (
        _recover_lost,
        revocations.cancel_left,
        revocations.cancel_runs_of_suspended_orgs,
        trees.cancel_orphans,
        trees.start_held,
        _cancel_unheld,
        _expire_inputs,
        _end_overdue_agents,
        _release_leaked_reservations,
    ):
        is_left, until = True, time.monotonic() + REPEAT_SECONDS
        while is_left:
            with connections.transaction() as tx:
                if not tx.sql.scalar(select(func.pg_try_advisory_xact_lock(LOCK_KEY))):
                    return
                is_left = bool(settle(tx)) and time.monotonic() < until
    waiting_runs.start_due(connections)
    waiting_runs.start_left(connections)


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
        return taken


def _recover_lost(tx: Transaction) -> None:
    settings = tx.connections.settings
    lost = tx.sql.exec_driver_sql(
        _FIND_LOST,
        {
            "lease": settings.lease_seconds,
            "agents_lease": settings.lease_seconds
            - min(MOST_BETWEEN_LOOKS * settings.sweep_seconds, settings.lease_seconds / 5),
            "missed": settings.heartbeat_seconds * 1.25,
            "batch": BATCH,
        },
    ).all()
    if not lost:
        return
    owners = {"owners": list({row.owner for row in lost}), "lease": settings.lease_seconds}
    tx.sql.exec_driver_sql(_DECLARE_LOST, owners)
    is_crash = {row.id: row.is_crash for row in lost}
    rows = tx.sql.execute(select(*runs.c).where(runs.c.id.in_(is_crash))).mappings().all()
    for run in _with_reservations_locked(tx, rows):
        with _isolated(tx, run):
            log.warning("recovering run %s from lost worker %s", run["id"], run["owner"])
            _recover(tx, run, is_crash=is_crash[run["id"]])


def _with_reservations_locked(tx: Transaction, rows: Sequence[RowMapping]) -> Sequence[RowMapping]:
    """Lock all that the ends of these locked runs will change; returns those that may end now.

    A sub-run whose parent somebody has locked comes back in the next sweep.
    """
    if not rows:
        return rows
    parents = {None, *sub_runs.lock_parents(tx, rows, wait=False)}
    rows = [run for run in rows if run.get("parent_run_id") in parents]
    budgets.lock(tx, [run["id"] for run in rows])
    return rows


@contextmanager
def _isolated(tx: Transaction, run: RowMapping) -> Iterator[None]:
    """Isolate the work on one run, so that its failure does not stop the others."""
    pending = len(tx.after_commit)
    with logs.about(**_subject(run)):
        try:
            with tx.sql.begin_nested():
                yield
        except Exception as error:
            if isinstance(error, DBAPIError) and postgres.is_outage(error):
                raise
            del tx.after_commit[pending:]
            log.exception("sweeping run %s failed; continuing with the others", run["id"])


def _subject(run: RowMapping) -> dict[str, str]:
    """Return the fields of the lines about a run; not every statement reads its trace."""
    fields = {"run_id": str(run["id"]), "org_id": str(run["org_id"])}
    return fields | ({"trace_id": run["trace_id"]} if "trace_id" in run else {})


def recover_orphan(connections: Connections, run_id: UUID, owner: UUID, is_crash: bool) -> None:
    """Take a run from its own, living owner, who knows that no thread of it holds the run.

    `is_crash` says whether that counts towards the three crashes which end a run.

    Raises:
        Unavailable
    """
    with connections.transaction() as tx:
        executing = tx.sql.execute(
            select(*runs.c)
            .where(runs.c.id == run_id, runs.c.owner == owner, runs.c.state == RunState.EXECUTING)
            .with_for_update()
        )
        for run in executing.mappings().all():
            _recover(tx, run, is_crash=is_crash)


def recover_lost(tx: Transaction, run: RowMapping) -> None:
    """Take an executing run, which the caller has locked, from a worker whose lease has expired.

    An operator has decided that; the sweep would wait until more is known about the silence.
    """
    sub_runs.lock_parents(tx, [run], wait=True)
    budgets.lock(tx, [run["id"]])
    log.warning("recovering run %s from worker %s for an operator", run["id"], run["owner"])
    _recover(tx, run, is_crash=False)


def _recover(tx: Transaction, run: RowMapping, *, is_crash: bool = True) -> None:
    """Queue a lost run again, unless it was being cancelled or keeps losing its workers."""
    if is_crash and run["agent"] is None:  # the operator cannot mend agent workers
        tx.after_commit.append(Recovered(run["id"]))
    run_spans.lost(tx.sql, run)
    if run["cancel_requested_at"] is not None:
        endings.end_unclaimed(tx, run, RunState.CANCELLED)
        return
    of_run = run_events.c.run_id == run["id"]
    begun = (
        select(func.max(run_events.c.seq))
        .where(of_run, run_events.c.type.in_((RunStarted.type, RunResumed.type)))
        .scalar_subquery()
    )
    progressed = tx.sql.scalar(
        select(run_events.c.seq)
        .where(
            of_run,
            run_events.c.seq > begun,
            run_events.c.type.in_(STEP_TYPES),
        )
        .limit(1)
    )
    crashes = (0 if progressed else run["crashes"]) + int(is_crash)
    if crashes >= MAX_CRASHES:
        endings.end_unclaimed(tx, run, RunState.FAILED, CRASHED)
    else:
        agent_costs.give_back_lost(tx, run)
        tx.sql.execute(
            update(runs)
            .where(runs.c.id == run["id"])
            .values(**queued("worker_lost"), fence=runs.c.fence + 1, crashes=crashes)
        )
        tx.after_commit.append(agent_queue.announce(run["id"], run["org_id"], run["agent"]))


def recover_from(connections: Connections, owner: UUID, seen_at: datetime) -> None:
    """Take the runs of an agent worker whose connection was closed and that was not heard since.

    `seen_at` is when it renewed its lease over that connection.

    Raises:
        Unavailable
    """
    lease = func.make_interval(0, 0, 0, 0, 0, 0, connections.settings.lease_seconds)
    is_silent = (workers.c.id == owner) & (workers.c.seen_at == seen_at)
    with connections.transaction() as tx:
        lost = update(workers).where(is_silent).values(seen_at=func.now() - lease)
        if not tx.sql.execute(lost).rowcount:
            return
        executing = tx.sql.execute(
            select(*runs.c)
            .where(runs.c.owner == owner, text("state = 'executing'"))
            .order_by(runs.c.id)
            .with_for_update(skip_locked=True)
        )
        for run in _with_reservations_locked(tx, executing.mappings().all()):
            with _isolated(tx, run):
                log.warning("recovering run %s from lost agent worker %s", run["id"], owner)
                _recover(tx, run)


def _cancel_unheld(tx: Transaction) -> bool:
    """End a batch of runs that no worker holds, where a cancel was requested but not carried out.

    Their key was revoked, or they went back to the queue while somebody cancelled them. Returns
    whether more may be left.
    """
    ids = tx.sql.exec_driver_sql(_FIND_CANCELLED_IN_TURNS, {"most": BATCH}).scalars().all()
    unheld = select(*runs.c).where(UNHELD_AND_CANCELLED, runs.c.id.in_(ids))
    rows = tx.sql.execute(unheld.with_for_update(skip_locked=True)).mappings().all() if ids else ()
    for run in _with_reservations_locked(tx, rows):
        with _isolated(tx, run):
            endings.end_unclaimed(tx, run, RunState.CANCELLED)
    return len(ids) == BATCH


def _expire_inputs(tx: Transaction) -> None:
    waiting = tx.sql.execute(
        select(*runs.c)
        .where(WAITING, runs.c.input_expires_at < func.now(), runs.c.org_id.not_in(MOVED_ORGS))
        .order_by(runs.c.input_expires_at)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    for run in _with_reservations_locked(tx, waiting.mappings().all()):
        with _isolated(tx, run):
            if pending_calls.give_up_late(tx, run):
                continue
            if (run["pending_input"] or {}).get("on_expiry") == "continue":
                commands.resume_expired(tx, run)
            else:
                endings.end_unclaimed(tx, run, RunState.FAILED, EXPIRED)


def _end_overdue_agents(tx: Transaction) -> None:
    """End runs of agent workers whose time is over, or that ignore a cancel."""
    grace = func.make_interval(0, 0, 0, 0, 0, 0, CANCEL_SECONDS)
    is_cancelled = runs.c.cancel_requested_at < func.now() - grace
    overdue = tx.sql.execute(
        select(*runs.c, agent_runs.c.lands)
        .join(agent_runs, agent_runs.c.run_id == runs.c.id)
        .where(
            runs.c.state == RunState.EXECUTING,
            or_(agent_runs.c.deadline_at < func.now(), is_cancelled),
        )
        .order_by(runs.c.id)
        .limit(BATCH)
        .with_for_update(of=runs, skip_locked=True)
    )
    for run in _with_reservations_locked(tx, overdue.mappings().all()):
        with _isolated(tx, run):
            if run["cancel_requested_at"] is not None:
                endings.end_unclaimed(tx, run, RunState.CANCELLED)
            elif run["lands"]:
                agent_endings.stop(held_runs.of_row(tx, run), _persona_of(tx.sql, run), OVERDUE)
            else:
                endings.end_unclaimed(tx, run, RunState.FAILED, OVERDUE)
            topic = agent_workers.news_topic(run["owner"])
            tx.after_commit.append(Wake(topic, str(run["id"]), everyone=True))


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


def _release_leaked_reservations(tx: Transaction) -> None:
    """Release the reservations of runs that an operator has deleted.

    Budgets count what the run had cost when it last reserved; charged is at most what it had
    reserved of the org's credits. The routes that it called are not known any more, and an org pays
    for its own models elsewhere.
    """
    leaked = tx.sql.exec_driver_sql(_FIND_LEAKED_RESERVATIONS, {"batch": BATCH})
    for run in _with_reservations_locked(tx, leaked.mappings().all()):
        with _isolated(tx, run):
            log.warning("releasing the reservation of deleted run %s", run["id"])
            cost, held = run["cost_usd"], Decimal(run["held_credits"]) / CREDITS_PER_USD
            own = max(cost - held, budgets.NOTHING)
            budgets.release(tx, org_id=run["org_id"], run_id=run["id"], cost_usd=cost, own_usd=own)


def start(connections: Connections) -> BackgroundLoop:
    """Sweep for as long as the process lives, or until the loop is stopped."""
    own = connections.with_pool(application="arkloop-sweep", size=1, timeouts=MAINTENANCE_TIMEOUTS)
    tidy_at = time.monotonic()

    def step() -> None:
        nonlocal tidy_at
        rewinds.check(own)
        if not take_turn(own):
            return
        began = time.monotonic()
        sweep(own)
        metrics.SWEEPS.add(time.monotonic() - began)
        if time.monotonic() >= tidy_at and not tidying.tidy(own):
            tidy_at = time.monotonic() + TIDY_SECONDS

    return BackgroundLoop(
        "sweep",
        step,
        seconds=connections.settings.sweep_seconds,
        first_seconds=0,  # a restored database is noticed before much is read from Redis
        before=own.wait_for_schema,
        after=own.close_pool,
    )
