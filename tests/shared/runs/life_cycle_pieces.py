"""The pieces of the state machine's rules: each does a thing and tells the model.

A piece makes what it needs (a run, a claim, a question) if there is none.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

import pytest
from hypothesis.stateful import (
    RuleBasedStateMachine,
)
from sqlalchemy import update

from arkloop.shared.claim import Claim
from arkloop.shared.errors import NotWaiting, ThreadBusy, Unavailable
from arkloop.shared.events import types
from arkloop.shared.events.usage import Usage
from arkloop.shared.ids import new_id
from arkloop.shared.runs import claims, recovery, sweep
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.runs import workers
from arkloop.worker.attempt.outcome import Completed, HandedOff, Outcome
from arkloop.worker.contract.outcomes import CancelRequested
from arkloop.worker.process import lease
from tests.shared.runs.life_cycle_model import (
    Happening,
    ModelAttempt,
    ModelRun,
    ModelThread,
    ModelWorker,
)
from tests.shared.runs.life_cycle_rows import Observer
from tests.shared.runs.life_cycle_workers import (
    ASKED,
    InterruptedConnections,
    begin_attempt,
    last_word,
    use,
)
from tests.stored_runs import StoredRuns, ago

T = TypeVar("T")

LEASE_SECONDS = 1.0
#: A living worker of these tests renews nothing.
AN_HOUR = 3600.0
#: What a worker may write between the events before its last one and that one.
CLOSING = {"run.cost", "run.cancel_requested", "message.completed"}


class Pieces(RuleBasedStateMachine):
    """Threads, workers and attempts of one example; no rules."""

    def __init__(self, stored: StoredRuns) -> None:
        super().__init__()
        self.stored = stored
        self.connections = InterruptedConnections.of(stored.connections)
        self.observer = Observer()
        self.threads: list[ModelThread] = []
        self.workers: list[ModelWorker] = []
        self.attempts: list[ModelAttempt] = []

    @property
    def runs(self) -> list[ModelRun]:
        return [run for thread in self.threads for run in thread.runs]

    @property
    def late(self) -> list[ModelAttempt]:
        return [attempt for attempt in self.attempts if not attempt.holds]

    def _active(self, who: int) -> ModelRun:
        thread = at(self.threads, who)
        if thread.active is None:
            self._create(thread)
        assert thread.active is not None
        return thread.active

    def _held(self, who: int) -> ModelAttempt:
        """Return the attempt that holds the thread's active run."""
        while True:
            run = self._active(who)
            if run.holder is not None:
                return run.holder
            if run.state == RunState.WAITING:
                self._answer(run, "red ")
            elif run.state == RunState.EXECUTING:
                self._give_up(run, is_crash=False)
            else:
                self._claim(run, self._heard(at(self.workers, who)))

    def _waiting(self, who: int) -> ModelRun | None:
        """Return the thread's run when it waits; one that is being cancelled cannot wait."""
        run = self._active(who)
        if run.state != RunState.WAITING:
            attempt = self._held(who)
            run = attempt.run
            self._park(attempt)
        return run if run.state == RunState.WAITING else None

    def _one(self, who: int, is_late: bool) -> ModelAttempt:
        """Return an attempt that holds its run; or, if there is one, an attempt that is over."""
        return at(self.late, who) if is_late and self.late else self._held(who)

    def _create(self, thread: ModelThread) -> None:
        self._begin(thread, lambda: self.stored.create(thread.id))

    def _begin(self, thread: ModelThread, new: Callable[[], UUID]) -> bool:
        """Begin one run at a time in a thread."""
        if active := thread.active:
            with pytest.raises(ThreadBusy) as busy:
                new()
            assert {"active_run_id": str(active.id)} == busy.value.details
            return False
        run_id = new()
        thread.runs.append(ModelRun(run_id, thread, self.stored.row(run_id)["position"]))
        return True

    def _answer(self, run: ModelRun, content: str, request_id: UUID | None = None) -> None:
        if run.is_expired:
            with pytest.raises(NotWaiting):
                self.stored.answer(run.id, content, request_id)
            self.stored.set(run.id, input_expires_at=ago(seconds=-60))
            run.is_expired = False
        self.stored.answer(run.id, content, request_id)
        run.is_answered(content)

    def _seen(self, by: ModelWorker, seconds_from_now: float) -> None:
        seen = update(workers).values(seen_at=ago(seconds=-seconds_from_now), back_at=None)
        with self.stored.connections.transaction() as tx:
            tx.sql.execute(seen.where(workers.c.id == by.id))
        by.is_silent = seconds_from_now < 0 or by not in self.workers  # forgotten

    def _heard(self, worker: ModelWorker) -> ModelWorker:
        if worker.is_silent:
            self._seen(worker, AN_HOUR)
        return worker

    def _renew(self, worker: ModelWorker) -> None:
        """Renew by the statement of its lease; just now, however long the machine takes."""
        parameters = {"id": worker.id, "silent": LEASE_SECONDS / 2}
        later = {"seen_at": ago(seconds=-AN_HOUR), "back_at": ago(seconds=-AN_HOUR)}
        with self.stored.connections.transaction() as tx:
            tx.sql.exec_driver_sql(lease._RENEW, parameters)
            is_back = workers.c.back_at.is_not(None)
            moved = update(workers).where(workers.c.id == worker.id, is_back).values(later)
            assert 1 == tx.sql.execute(moved).rowcount
        worker.is_silent = False

    def _sweep(self) -> None:
        """Sweep; a silent owner is lost only while another one is heard, or its row is gone."""
        sweep.sweep(self.stored.connections)
        somebody = any(not worker.is_silent for worker in self.workers)
        for run in self.runs:
            owner = run.owner
            if run.state == RunState.EXECUTING and owner is not None and owner.is_silent:
                if somebody or run.is_cancelling or owner not in self.workers:
                    run.is_lost()
            elif run.state == RunState.WAITING and run.is_expired:
                run.ends_unheld(RunState.FAILED, "input.expired")

    def _crash(self, attempt: ModelAttempt) -> None:
        """Lose the run's worker, and notice it; it comes back for what it had."""
        run, lost = attempt.run, attempt.worker
        self._heard(next(worker for worker in self.workers if worker is not lost))
        self._seen(lost, -2 * LEASE_SECONDS)
        self._sweep()
        self._seen(lost, AN_HOUR)
        if run.state == RunState.QUEUED:
            self._claim(run, lost)

    def _give_up(self, run: ModelRun, *, is_crash: bool) -> None:
        assert run.owner is not None
        self._report(run, run.owner.id, is_crash=is_crash)
        run.is_lost(is_crash=is_crash)

    def _report(self, run: ModelRun, by: UUID, *, is_crash: bool) -> None:
        fence = self.stored.row(run.id)["fence"]
        recovery.recover_orphan(self.stored.connections, run.id, by, fence, is_crash)

    def _claim(self, run: ModelRun, by: ModelWorker, outage: str | None = None) -> None:
        is_free = run.state == RunState.QUEUED and not by.is_silent
        claim: Claim | None = None
        # The first transaction is for new runs, the second one for those that resume.
        self.connections.outage, self.connections.passing = outage, int(run.attempts > 0)
        try:
            claim = claims.claim(self.connections, [run.id], by.id).get(run.id)
        except Unavailable:
            if is_free and outage == "after":
                run.is_claimed(by)  # and no thread knows
            return
        assert is_free == (claim is not None)
        if claim is not None:
            run.is_claimed(by)
            assert (run.attempts, len(run.types)) == (claim.attempt, claim.last_seq)
            run.holder = begin_attempt(self.connections, run, by, claim)
            self.attempts.append(run.holder)

    def _finish_step(self, attempt: ModelAttempt, *, is_turn: bool) -> None:
        if is_turn:
            completed = types.MessageCompleted(str(new_id()), attempt.text, Usage())
            attempt.claimed.emit(completed, use(attempt))
            cost = Happening("run.cost", tokens=attempt.tokens)
            attempt.emits(Happening("message.completed"), cost)
        else:
            attempt.claimed.emit(types.ToolResult("call", "tool", "output", False, 1))
            attempt.emits(Happening("tool.result"))

    def _write_events(self, by: ModelWorker, outage: str | None = None) -> None:
        gathered = [one for one in self.attempts if one.worker is by and one.unwritten]
        self.connections.outage = outage if gathered else None
        by.writer.tick()
        for attempt in gathered:
            attempt.number()
            if attempt.holds and outage in (None, "after"):
                attempt.writes(is_told=outage is None)
            elif outage is None:
                attempt.unwritten.clear()
                assert attempt.claimed.stop.lease_lost

    def _park(self, attempt: ModelAttempt, outage: str | None = None) -> None:
        if self._lets_go(attempt, ASKED, RunState.WAITING, "run.waiting_for_input", outage):
            pending = self.stored.row(attempt.run.id)["pending_input"]
            attempt.run.question = UUID(pending["request_id"])

    def _release(self, attempt: ModelAttempt, outage: str | None = None) -> None:
        """Release for a deploy, after the end of the step, as the loop does."""
        if attempt.has_finished_a_step:
            self._write_events(attempt.worker)
            try:
                attempt.claimed.checkpoint()
            except CancelRequested:
                return
        self._lets_go(attempt, HandedOff(), RunState.QUEUED, "", outage)

    def _complete(self, attempt: ModelAttempt, content: str, outage: str | None = None) -> None:
        outcome = Completed(last_word(content, use(attempt)))
        last = "run.completed"
        if self._lets_go(attempt, outcome, RunState.COMPLETED, last, outage):
            self._keeps(attempt.run, content, is_partial=False)

    def _lets_go(
        self,
        attempt: ModelAttempt,
        outcome: Outcome,
        state: RunState,
        last: str,
        outage: str | None,
    ) -> bool:
        """Store what was unwritten, perhaps some `CLOSING`, and `last`; but a cancel comes
        first.
        """
        run = attempt.run
        is_open = state == RunState.CANCELLED or not run.is_cancelling
        self.connections.outage = outage
        assert is_open == attempt.recorder.record(outcome)
        attempt.number()
        if not is_open:
            return False
        attempt.writes()
        run.is_let_go(state)
        *closing, end = [*self.stored.types(run.id)[len(run.types) :], *([] if last else [""])]
        assert last == end
        assert set(closing) <= CLOSING
        run.happens(*(Happening(type_, tokens=attempt.tokens) for type_ in closing))
        run.types += [last] if last else []
        return True

    def _keeps(self, run: ModelRun, content: str, *, is_partial: bool) -> None:
        if content:
            run.message = (content, is_partial)
            run.thread.is_answered(run)


def at(choices: Sequence[T], number: int) -> T:
    return choices[number % len(choices)]


def raises(error: type[BaseException] | None, call: Callable[[], Any]) -> None:
    if error is None:
        call()
        return
    with pytest.raises(error):
        call()
