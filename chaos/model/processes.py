"""The moves of the processes: each is a step of a transaction, as the code takes it.

A transaction looks without a lock, locks the active run, locks the thread, and writes with its
commit. What it looked at may have changed when it has its locks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from arkloop.shared.runs.thread_queue import Effect, Happening, Holder, OnBusy
from chaos.model.busy_thread import (
    ACTIVE,
    CANCELLED,
    COMPLETED,
    ENDED,
    EXECUTING,
    FAILED,
    NOBODY,
    PENDING,
    QUEUED,
    SCHEDULED,
    SUSPENDED,
    WAITING,
    Process,
    Thread,
    Tx,
)
from chaos.model.effects import Care, Case, Table, carry_out, find, happen, start_first
from chaos.model.life import Life, live
from chaos.model.steps import (
    CLIENTS,
    SWEEP,
    WORKER,
    Bounds,
    begin,
    case_of,
    happening_of,
    is_held,
    is_orphan,
    let_go,
    name_of,
    set_tx,
    take,
    unlocked,
)

Move = tuple[str, Thread]

#: How a lost run ends, unless it was to be cancelled: not at all.
RELEASED = "released"

NAMES = ("client 1", "client 2", "worker", "sweep")


def is_request(label: str) -> bool:
    """Return whether this is a move that a client may make and may leave."""
    return " requests " in label or " answers " in label


@dataclass(frozen=True, slots=True)
class Model:
    """Two clients, a worker, the sweep and a crash, over one table."""

    table: Table
    bounds: Bounds

    def initial(self) -> Thread:
        """Return a thread in which nothing has happened."""
        first, second = self.bounds.requests
        return Thread(
            processes=(Process(first), Process(second), Process(), Process()),
            parks=self.bounds.parks,
            crashes=self.bounds.crashes,
        )

    def moves(self, thread: Thread) -> Iterator[Move]:
        """Yield each move that is possible now."""
        for client in CLIENTS:
            if thread.processes[client].tx is None and thread.processes[client].left:
                yield from self._requests(thread, client)
        for number, tx in thread.transactions():
            for label, after in self._step(thread, number, tx):
                yield f"{NAMES[number]} {label}", after
        if thread.processes[WORKER].tx is None:
            yield from self._work(thread)
        if thread.processes[SWEEP].tx is None:
            yield from self._sweep(thread)
        if thread.crashes:
            yield from self._crashes(thread)

    # ---- clients ---------------------------------------------------------------------

    def _requests(self, thread: Thread, client: int) -> Iterator[Move]:
        left = thread.processes[client].left - 1

        def request(what: str, tx: Tx) -> Move:
            return f"{NAMES[client]} requests {what}", begin(thread, client, tx, left=left)

        for on_busy in self.bounds.on_busy:
            yield request(on_busy, Tx("create", "look", on_busy=on_busy))
        if self.bounds.has_times:
            yield request("a run for later", Tx("later", "look", on_busy=OnBusy.ENQUEUE))
        for number, run in enumerate(thread.runs):
            if run.state in ENDED:
                continue
            yield request(f"the cancel of {number}", Tx("cancel", "look", number))
            if run.state in (PENDING, SCHEDULED) and not run.cancel and self.bounds.has_revocations:
                revoked = thread.with_process(client, left=left).with_run(number, cancel=True)
                yield f"{NAMES[client]} requests the end of the key of {number}", revoked
        active = thread.active
        if thread.holder is Holder.WAITING and not thread.is_locked(active):
            resumed = live(thread, Life.RESUME)
            yield f"{NAMES[client]} answers {active}", resumed.with_process(client, left=left)

    # ---- transactions ----------------------------------------------------------------

    def _step(self, thread: Thread, number: int, tx: Tx) -> Iterator[Move]:
        if tx.does in ("create", "later", "due"):
            yield from self._step_of_request(thread, number, tx)
        elif tx.does == "cancel":
            yield from self._step_of_cancel(thread, number, tx)
        elif tx.does == "deliver":
            yield from self._step_of_delivery(thread, number, tx)
        else:
            yield from self._step_of_end(thread, number, tx)

    def _step_of_request(self, thread: Thread, number: int, tx: Tx) -> Iterator[Move]:
        table = self.table
        match tx.step:
            case "look":
                seen = thread.active
                next_step = "at once" if seen == NOBODY and tx.does == "create" else "lock run"
                if seen == NOBODY and tx.does != "create":
                    next_step = "lock thread"
                run = tx.target if tx.does == "due" else seen
                looked = tx._replace(step=next_step, target=run)
                if not table.has(Care.LOOKS_AGAIN) or next_step == "at once":
                    rule = find(table, thread, happening_of(tx), case_of(tx, number))
                    looked = looked._replace(how=rule.name)
                yield f"sees {name_of(seen)} active", set_tx(thread, number, looked)
            case "at once":
                # One statement, which saw a free thread: the index decides, it locks no run.
                if thread.is_thread_locked or (
                    thread.active != NOBODY and table.has(Care.UNIQUE_INDEX)
                ):
                    again = tx._replace(step="look again", how="")
                    yield "does not create it at once", set_tx(thread, number, again)
                else:
                    yield from self._write(thread, number, tx)
            case "look again":
                seen = thread.active
                step = "lock thread" if seen == NOBODY else "lock run"
                looked = tx._replace(step=step, target=seen)
                yield f"sees {name_of(seen)} active", set_tx(thread, number, looked)
            case _:
                yield from self._locks(thread, number, tx)

    def _locks(self, thread: Thread, number: int, tx: Tx) -> Iterator[Move]:
        """Take the lock of the active run, then that of the thread, then write."""
        table = self.table
        run = thread.active if tx.does == "due" else tx.target
        again = "look" if tx.does == "due" else "look again"
        without = unlocked(tx, again)
        match tx.step:
            case "lock run":
                if run == NOBODY or thread.runs[run].state not in ACTIVE:
                    if table.has(Care.LOOKS_AGAIN):
                        yield "finds it ended", set_tx(thread, number, without)
                    else:
                        yield "ignores it", set_tx(thread, number, tx._replace(step="lock thread"))
                elif not thread.is_locked(run):
                    locked = tx._replace(step="lock thread", run_lock=run)
                    yield f"locks run {run}", set_tx(thread, number, locked)
            case "lock thread":
                if not table.has(Care.LOCKS_THREAD):
                    rule = find(table, thread, happening_of(tx), case_of(tx, number))
                    decided = tx._replace(step="write", how=rule.name)
                    yield f"decides: {rule.name}", set_tx(thread, number, decided)
                elif not thread.is_thread_locked:
                    is_other = thread.active != tx.run_lock
                    if is_other and table.has(Care.LOOKS_AGAIN):
                        yield "finds another run active", set_tx(thread, number, without)
                    else:
                        locked = tx._replace(step="write", thread_lock=True)
                        yield "locks the thread", set_tx(thread, number, locked)
            case "write":
                yield from self._write(thread, number, tx)

    def _write(self, thread: Thread, number: int, tx: Tx) -> Iterator[Move]:
        if tx.does == "due" and thread.runs[tx.target].state != SCHEDULED:
            yield "finds it gone", set_tx(thread, number, None)
            return
        table, case = self.table, case_of(tx, number)
        if tx.how:
            rule = next(rule for rule in table.rules if rule.name == tx.how)
        else:
            rule = find(table, thread, happening_of(tx), case)
        is_second = Effect.START in rule.effects and thread.active != NOBODY
        if is_second and table.has(Care.UNIQUE_INDEX):
            again = "look" if tx.does == "due" else "look again"
            yield "is refused", set_tx(thread, number, unlocked(tx, again))
            return
        after = carry_out(table, thread, rule, case)
        yield f"commits: {rule.name}", set_tx(after, number, None)

    def _step_of_cancel(self, thread: Thread, number: int, tx: Tx) -> Iterator[Move]:
        run = thread.runs[tx.target]
        match tx.step:
            case "look":
                if run.state in ENDED:
                    yield "finds it ended", set_tx(thread, number, None)
                    return
                waits = run.state in (PENDING, SCHEDULED)
                step = "lock its thread" if waits else "lock run"
                yield f"sees it {run.state}", set_tx(thread, number, tx._replace(step=step))
            case "lock its thread":
                if not thread.is_thread_locked:
                    locked = tx._replace(step="withdraw", thread_lock=True)
                    yield "locks the thread", set_tx(thread, number, locked)
            case "withdraw":
                if run.state not in (PENDING, SCHEDULED) and self.table.has(Care.STILL_WAITS):
                    again = tx._replace(step="look", thread_lock=False)
                    yield "finds it started or ended", set_tx(thread, number, again)
                else:
                    case = Case(number, run=tx.target)
                    _, after = happen(self.table, thread, Happening.CANCEL_WAITING, case)
                    yield "commits its withdrawal", set_tx(after, number, None)
            case "lock run":
                if not thread.is_locked(tx.target):
                    if run.state not in ACTIVE:
                        again = tx._replace(step="look")
                        yield "finds it ended", set_tx(thread, number, again)
                        return
                    locked = tx._replace(step="lock thread", run_lock=tx.target)
                    yield f"locks run {tx.target}", set_tx(thread, number, locked)
            case "lock thread":
                # What a worker holds is only asked to end, and a run alone starts nothing.
                if run.state == EXECUTING or not run.has_followers:
                    yield from self._cancel(thread, number, tx)
                elif not thread.is_thread_locked:
                    locked = tx._replace(step="write", thread_lock=True)
                    yield "locks the thread", set_tx(thread, number, locked)
            case "write":
                yield from self._cancel(thread, number, tx)

    def _cancel(self, thread: Thread, number: int, tx: Tx) -> Iterator[Move]:
        case = Case(number, run=tx.target, end=CANCELLED)
        rule, after = happen(self.table, thread, Happening.CANCEL_ACTIVE, case)
        yield f"commits: {rule.name}", set_tx(after, number, None)

    def _step_of_delivery(self, thread: Thread, number: int, tx: Tx) -> Iterator[Move]:
        process = thread.processes[number]
        match tx.step:
            case "lock run":
                if thread.is_locked(tx.target):
                    return
                if not is_held(thread, process):
                    yield "has lost its run", let_go(thread, number)
                else:
                    locked = tx._replace(step="write", run_lock=tx.target)
                    yield f"locks run {tx.target}", set_tx(thread, number, locked)
            case "write":
                # Its worker may learn of a cancel from this very write.
                _, after = happen(self.table, thread, Happening.STEP, Case(run=tx.target))
                yield "commits the delivery", set_tx(after, number, None)

    def _step_of_end(self, thread: Thread, number: int, tx: Tx) -> Iterator[Move]:
        """End a run by its worker, or by the sweep, which has its lock from the start."""
        run = thread.runs[tx.target]
        match tx.step:
            case "lock run" | "lock run last":
                if thread.is_locked(tx.target):
                    return
                if not is_held(thread, thread.processes[number]):
                    yield "has lost its run", let_go(thread, number)
                    return
                step = "lock thread" if tx.step == "lock run" else "write"
                locked = tx._replace(step=step, run_lock=tx.target)
                yield f"locks run {tx.target}", set_tx(thread, number, locked)
            case "lock thread" if not run.has_followers:
                yield from self._end(thread, number, tx)
            case "lock thread" | "lock thread first":
                if not thread.is_thread_locked:
                    step = "write" if tx.step == "lock thread" else "lock run last"
                    locked = tx._replace(step=step, thread_lock=True)
                    yield "locks the thread", set_tx(thread, number, locked)
            case "write":
                yield from self._end(thread, number, tx)
            case "start":
                after = thread
                if thread.active == NOBODY:
                    after = start_first(self.table, thread)
                yield "starts the next", let_go(after, number)

    def _end(self, thread: Thread, number: int, tx: Tx) -> Iterator[Move]:
        run = thread.runs[tx.target]
        if tx.how == RELEASED and not run.cancel:
            after = live(thread, Life.RELEASE)
            after = after.with_run(tx.target, fence=run.fence + 1)
            yield "commits its release", let_go(after, number)
            return
        end = CANCELLED if tx.how == RELEASED else tx.how
        case = Case(run=tx.target, end=end)
        if not self.table.has(Care.ONE_TRANSACTION) and run.has_followers:
            rule = find(self.table, thread, Happening.END, case)
            alone = replace(rule, effects=tuple(e for e in rule.effects if e != "start_first"))
            after = carry_out(self.table, thread, alone, case)
            yield "commits its end alone", set_tx(after, number, Tx("end", "start", tx.target))
            return
        _, after = happen(self.table, thread, Happening.END, case)
        after = after.with_run(tx.target, fence=run.fence + 1)
        yield f"commits its end: {after.runs[tx.target].state}", let_go(after, number)

    # ---- the worker ------------------------------------------------------------------

    def _work(self, thread: Thread) -> Iterator[Move]:
        process = thread.processes[WORKER]
        active = thread.active
        if process.held == NOBODY:
            if thread.holder is Holder.QUEUED and not thread.is_locked(active):
                claimed = live(thread, Life.CLAIM)
                fence = claimed.runs[active].fence
                yield (
                    f"worker claims {active}",
                    claimed.with_process(WORKER, held=active, fence=fence),
                )
            return
        held = process.held
        run = thread.runs[held]
        holds = is_held(thread, process)
        if thread.offered and holds:
            yield "worker begins a step", begin(thread, WORKER, Tx("deliver", "lock run", held))
        if thread.parks and holds and not run.cancel and not thread.is_locked(held):
            for move in (Life.PARK, Life.SUSPEND):
                parked = live(thread, move)._replace(parks=thread.parks - 1)
                yield f"worker: {move} {held}", let_go(parked, WORKER)
        if run.has_followers and self.table.has(Care.READS_FLAG):
            first = "lock run" if self.table.has(Care.RUN_BEFORE_THREAD) else "lock thread first"
            tx = Tx("end", first, held, how=COMPLETED)
            yield f"worker begins to end {held}", begin(thread, WORKER, tx)
        elif not thread.is_locked(held):
            yield from self._end_at_once(thread, held)

    def _end_at_once(self, thread: Thread, held: int) -> Iterator[Move]:
        """End it by the statement that ends many: the flag is seen under the lock of the row."""
        tx = Tx("end", "write", held, how=COMPLETED)
        if not is_held(thread, thread.processes[WORKER]):
            yield "worker has lost its run", let_go(thread, WORKER)
            return
        hidden = thread
        if not self.table.has(Care.READS_FLAG):
            hidden = thread.with_run(held, has_followers=False)
        for _, after in self._end(hidden, WORKER, tx):
            yield f"worker ends {held} at once", after

    # ---- the sweep -------------------------------------------------------------------

    def _sweep(self, thread: Thread) -> Iterator[Move]:
        for number, run in enumerate(thread.runs):
            is_to_end = run.cancel and run.state in (QUEUED, WAITING, SUSPENDED)
            if run.state in ACTIVE and not thread.is_locked(number):
                # It finds runs and locks them in one statement.
                finds_lost = self.table.has(Care.FINDS_LOST)
                is_lost = run.state == EXECUTING and (is_orphan(thread, number) or thread.crashes)
                if finds_lost and is_lost:
                    # Its worker is dead, or is only thought to be: then that is the crash.
                    lost = thread._replace(crashes=thread.crashes - (not is_orphan(thread, number)))
                    yield f"sweep locks {number}, a lost run", take(lost, number, RELEASED)
                if run.state == WAITING:
                    yield f"sweep locks {number}, an expired run", take(thread, number, FAILED)
                if is_to_end:
                    yield f"sweep locks {number}, a cancelled run", take(thread, number, CANCELLED)
                if run.state == SUSPENDED:
                    yield f"sub-runs of {number} end", live(thread, Life.RESUME)
            if run.cancel and run.state in (PENDING, SCHEDULED):
                yield (
                    f"sweep finds {number}, a cancelled run",
                    begin(thread, SWEEP, Tx("cancel", "look", number)),
                )
            if run.state == SCHEDULED and not run.cancel:
                tx = Tx("due", "look", number, on_busy=OnBusy.ENQUEUE)
                yield f"sweep finds {number}, a run that is due", begin(thread, SWEEP, tx)

    # ---- crashes ---------------------------------------------------------------------

    def _crashes(self, thread: Thread) -> Iterator[Move]:
        crashed = thread._replace(crashes=thread.crashes - 1)
        for number, process in enumerate(thread.processes):
            if process.tx is not None or process.held != NOBODY:
                yield (
                    f"{NAMES[number]} crashes",
                    crashed.with_process(number, left=0, tx=None, held=NOBODY, fence=0),
                )
