"""A trial: many runs of an org spend at once, and are lost at once, within limits that are too low.

Each spender is a thread that does what a worker does for a run: it reserves, pays for a call that
costs at most what it reserved, settles, ends. At any point it may be lost, also in the middle of a
transaction, or of an answer that is longer than what it reserved would pay for. Another worker
takes its run over, or the sweep ends it, several at once. Meanwhile a month may pass, and somebody
looks at the money all the time.
"""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal

from sqlalchemy import func, select, update

from arkloop.shared import times
from arkloop.shared.billing import budgets, spending
from arkloop.shared.billing.budget_limits import Limits
from arkloop.shared.billing.budgets import Refused
from arkloop.shared.claim import Claim
from arkloop.shared.errors import LeaseLost
from arkloop.shared.events import event_log
from arkloop.shared.events.stored_events import encode
from arkloop.shared.events.types import (
    Event,
    MessageCompleted,
    MessageDelta,
    MessageReset,
    RouteCost,
    RunCompleted,
    RunCost,
)
from arkloop.shared.events.usage import Usage
from arkloop.shared.runs import endings, interrupted_calls, sub_runs
from arkloop.shared.runs.endings import Ending, Outcome
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.transitions import Totals, recorded_totals
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.tables.runs import runs
from bench.overspend.org import Org, SpendingRun
from bench.overspend.verdict import Observer, Verdict

Reserve = Callable[[Transaction, Claim, Limits, Decimal, Decimal], None]

#: The chance to be lost at each point where that can happen.
LOST = 0.06
TAKEN_OVER = 0.5  # of those that are lost; the rest is ended by the sweep
MONTH_PASSES = 0.4
MAX_CALLS = 3
MAX_TRIES = 3
ENDED_AT_ONCE = 8
MAX_WORST_CASE = 2_000_000  # units of the 8th decimal: 2 cents
STREAMS = 0.3  # of the calls have said something when they may be lost
MAX_CHARACTERS = 40_000  # of what they say, which the estimate of a lost call takes for 2 cents


class Lost(Exception):
    """The spender's process is gone."""


class _Gate:
    """Either many are in transactions, or one changes the calendar."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._room = threading.Semaphore(size)

    @contextmanager
    def one(self) -> Iterator[None]:
        with self._room:
            yield

    @contextmanager
    def all(self) -> Iterator[None]:
        for _ in range(self._size):
            self._room.acquire()
        try:
            yield
        finally:
            self._room.release(self._size)


class Trial:
    """`reserve` is what is put to the test; `make` makes the org."""

    def __init__(
        self,
        connections: Connections,
        *,
        spenders: int,
        seed: int,
        reserve: Reserve = budgets.reserve,
        make: Callable[[Connections, int, random.Random], Org] = Org.make,
    ) -> None:
        self._connections = connections
        self._reserve = reserve
        self._dice = random.Random(seed)
        self._gate = _Gate(spenders)
        self._org = make(connections, spenders, self._dice)
        self._observer = Observer(connections, self._org)
        self._lost: list[SpendingRun] = []
        self._lock = threading.Lock()

    def run(self) -> Verdict:
        """Run the trial; returns what was seen meanwhile, and what is left."""
        spenders = [
            threading.Thread(target=self._spend, args=(run, random.Random(self._dice.random())))
            for run in self._org.runs
        ]
        others = [
            threading.Thread(target=self._observer.watch),
            threading.Thread(target=self._sweep),
        ]
        if self._dice.random() < MONTH_PASSES:
            others.append(threading.Thread(target=self._let_a_month_pass))
        for thread in (*others, *spenders):
            thread.start()
        for thread in spenders:
            thread.join()
        self._observer.stop.set()
        for thread in others:
            thread.join()
        while self._lost:
            self._end_lost()
        return self._observer.judge()

    # ---- a worker --------------------------------------------------------------------

    def _spend(self, run: SpendingRun, dice: random.Random) -> None:
        try:
            while True:
                try:
                    self._attempt(run, dice)
                    return
                except Lost:
                    if dice.random() > TAKEN_OVER:
                        break
                    self._take_over(run)
            with self._lock:
                self._lost.append(run)
        except BaseException as error:
            run.broken = error

    def _attempt(self, run: SpendingRun, dice: random.Random) -> None:
        """Play an attempt from the claim to the end; begins with what is recorded."""
        used = run.recorded
        for _ in range(dice.randint(1, MAX_CALLS)):
            worst = Decimal(dice.randint(0, MAX_WORST_CASE)) / 10**8
            if not self._reserved(run, used.cost_usd, worst, dice):
                break
            if dice.random() < STREAMS:
                self._store(run, MessageDelta("x" * dice.randint(1, MAX_CHARACTERS)))
            may_be_lost(dice)
            used = used.plus(_call(worst * dice.choice((0, 1, 1, Decimal(dice.random()))), dice))
            self._record(run, used, dice)
            if dice.random() < 0.7:
                self._settle(run.claim, used.cost_usd, dice)
        self._end(run, used, dice)

    def _reserved(
        self, run: SpendingRun, cost: Decimal, worst: Decimal, dice: random.Random
    ) -> bool:
        for _ in range(MAX_TRIES):
            try:
                with self._transaction(dice) as tx:
                    limits = budgets.limits(tx.sql, run.claim, run.persona)
                    self._reserve(tx, run.claim, limits, cost, worst)
                return True
            except Refused as refused:
                if not refused.others_reserved:
                    break
        return False

    def _record(self, run: SpendingRun, used: Totals, dice: random.Random) -> None:
        """Record a finished turn, whose text is not open any longer."""
        self._store(run, MessageCompleted("", "", Usage()), _cost(used), dice=dice)
        run.recorded = used

    def _store(self, run: SpendingRun, *happened: Event, dice: random.Random | None = None) -> None:
        moment = times.now()
        stored = [encode(run.last_seq + i, one, moment) for i, one in enumerate(happened, 1)]
        with self._transaction(dice) as tx:
            event_log.store(tx, {run.id: stored})
        run.last_seq += len(stored)

    def _settle(self, claim: Claim, cost: Decimal, dice: random.Random | None = None) -> None:
        with self._transaction(dice) as tx:
            budgets.settle(tx, claim, cost)

    def _end(self, run: SpendingRun, used: Totals, dice: random.Random) -> None:
        last = RunCompleted(None, used.usage, used.cost_usd, "stop")
        ending = Ending(
            claim=run.claim,
            state=RunState.COMPLETED,
            stored=[encode(run.last_seq + 1, last, times.now())],
            totals=used,
            has_reservation=True,
        )
        outcomes = [Outcome.LOCKED]
        while outcomes == [Outcome.LOCKED]:  # by the end of a sub-run
            with self._transaction(dice) as tx:
                outcomes = [endings.end_with_reservation(tx, ending)]
        # Where the answer of the COMMIT got lost it is tried again.
        with self._transaction() as tx:
            outcomes.append(endings.end_with_reservation(tx, ending))
        if outcomes != [Outcome.ENDED, Outcome.LOST]:
            raise AssertionError(f"it ended and ended again as {outcomes}")

    @contextmanager
    def _transaction(self, dice: random.Random | None = None) -> Iterator[Transaction]:
        """Open a transaction; with `dice` one may be lost before, in and after it, but for an
        end.
        """
        if dice is not None:
            may_be_lost(dice)
        with self._gate.one(), self._connections.transaction() as tx:
            yield tx
            if dice is not None:
                may_be_lost(dice)

    # ---- after a loss ----------------------------------------------------------------

    def _take_over(self, run: SpendingRun) -> None:
        """Claim the run for another worker; the lost one returns for a moment, too late."""
        late, run.claim = run.claim, replace(run.claim, fence=run.claim.fence + 1)
        with self._transaction() as tx:
            tx.sql.execute(update(runs).where(runs.c.id == run.id).values(fence=run.claim.fence))
        try:
            self._settle(late, Decimal(0))
        except LeaseLost:
            self._count_lost(run)
            return
        raise AssertionError("a claim that was over has changed what the run holds")

    def _count_lost(self, run: SpendingRun) -> None:
        """Void what was streamed, which is not free, and correct the reservation."""
        with self._connections.reading() as sql:
            run.last_seq = event_log.last_seq(sql, run.id)
            run.recorded = recorded_totals(sql, run.id)
            lost = event_log.open_events(sql, run.id)
            used = interrupted_calls.count(self._connections, sql, run.id, run.recorded, lost)
        if lost:
            self._store(run, MessageReset(lost[0].seq, "resumed"), _cost(used))
            run.recorded = used
        with self._transaction() as tx:
            limits = budgets.limits(tx.sql, run.claim, run.persona)
            budgets.settle(tx, run.claim, used.cost_usd, limits)

    def _sweep(self) -> None:
        while not self._observer.stop.wait(0.02):
            self._end_lost()

    def _end_lost(self) -> None:
        """End some of the runs that were lost for good, in one transaction."""
        with self._lock:
            ids = [run.id for run in self._lost[:ENDED_AT_ONCE] if not run.is_over]
            del self._lost[:ENDED_AT_ONCE]
        if not ids:
            return
        with self._transaction() as tx:
            rows = tx.sql.execute(
                select(*runs.c).where(runs.c.id.in_(ids)).order_by(runs.c.id).with_for_update()
            )
            lost = rows.mappings().all()
            parents = {None, *sub_runs.lock_parents(tx, lost, wait=False)}
            free = [run for run in lost if run["parent_run_id"] in parents]
            ends = {run["id"] for run in free}
            budgets.lock(tx, list(ends))
            for run in free:
                endings.end_unclaimed(tx, run, RunState.CANCELLED)
        with self._lock:
            self._lost += [run for run in self._org.runs if run.id in set(ids) - ends]

    def _let_a_month_pass(self) -> None:
        self._observer.stop.wait(self._dice.random() * 0.3)
        with self._gate.all():
            self._org.a_month_passes()


def may_be_lost(dice: random.Random) -> None:
    """Lose the spender's process, perhaps."""
    if dice.random() < LOST:
        raise Lost


def _cost(used: Totals) -> RunCost:
    return RunCost(used.usage, used.cost_usd, used.routes)


def _call(cost: Decimal, dice: random.Random) -> RouteCost:
    usage = Usage(input_tokens=dice.randint(0, 1000), output_tokens=dice.randint(0, 100))
    return RouteCost(dice.choice(("small", "large")), "model", usage, round(cost, 8))


def look_then_take(
    tx: Transaction, claim: Claim, limits: Limits, cost_so_far: Decimal, worst_case_usd: Decimal
) -> None:
    """Reserve as `budgets.reserve` would without care: no lock from the look to the write."""
    needed = cost_so_far + worst_case_usd
    for row in spending.now(tx.sql, claim.org_id, sorted(limits.monthly)):
        if row.spent_usd + row.held_usd + needed > limits.monthly[row.scope]:
            raise Refused(row.scope, limit=limits.monthly[row.scope], needed=needed)
    tx.sql.execute(select(func.pg_sleep(0.005)))
    boundless = {scope: Decimal(10**6) for scope in limits.monthly}
    budgets.reserve(tx, claim, replace(limits, monthly=boundless), cost_so_far, worst_case_usd)
