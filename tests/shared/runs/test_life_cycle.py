"""The life of runs in every order: a state machine plays people, workers, crashes and outages.

After each rule the database is held against `life_cycle_model`. A worker that the others
take for dead continues all the same, so that each of its late writes is tried too.
"""

import logging
import os
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, func, text, update

from arkloop.shared.errors import LeaseLost, NotActive, NotWaiting, StaleInput
from arkloop.shared.events import types
from arkloop.shared.ids import new_id
from arkloop.shared.runs import creation, sweep
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.runs import runs, workers
from arkloop.shared.threads import threads
from arkloop.worker.attempt import claimed_run
from arkloop.worker.attempt.outcome import Cancelled, Completed, HandedOff, Outcome
from arkloop.worker.process import event_writer
from tests.clients import User
from tests.shared.runs.life_cycle_model import ModelThread, ModelWorker
from tests.shared.runs.life_cycle_pieces import AN_HOUR, LEASE_SECONDS, Pieces, at, raises
from tests.shared.runs.life_cycle_workers import ASKED, LATE, SteppedWriter, last_word
from tests.stored_runs import StoredRuns, ago
from tests.waiting import eventually

#: `make life-cycle` plays many more.
EXAMPLES = int(os.environ.get("LIFE_CYCLES", "10"))
STEPS = 40

pick = st.integers(0, 11)
words = st.sampled_from(["red ", "green "])
seldom = st.sampled_from([False, False, False, True])
lives = st.lists(st.sampled_from(["crash", "crash", "step", "deploy"]), min_size=3, max_size=8)
outages = st.sampled_from([None, None, None, "before", "within", "after"])


class LifeCycle(Pieces):
    """Anything, at any time."""

    @initialize()
    def begin(self) -> None:
        for _ in range(2):
            self.hire()
            self.threads.append(ModelThread(self.stored.thread()))
            self.say(len(self.threads) - 1)

    def teardown(self) -> None:
        """End all runs, since the sweep looks at those of every example."""
        end = update(runs).values(state=RunState.CANCELLED, ended_at=func.now())
        with self.stored.connections.transaction() as tx:
            tx.sql.execute(end.where(runs.c.ended_at.is_(None)))
            tx.sql.execute(delete(workers))

    @invariant()
    def database_and_model_agree(self) -> None:
        with self.stored.connections.reading() as sql:
            self.observer.check(sql, self.threads)

    # ---- people ----

    @rule(who=pick)
    def say(self, who: int) -> None:
        thread = at(self.threads, who)
        with self.stored.connections.transaction() as tx:
            said = threads.add_message(tx, self.stored.actor, thread.id, content="Hello")
        thread.said[said.position] = "Hello"

    @rule(who=pick)
    def create(self, who: int) -> None:
        self._create(at(self.threads, who))

    @rule(who=pick)
    def retry(self, who: int) -> None:
        thread = at(self.threads, who)
        catalog = self.stored.catalog()

        def again() -> UUID:
            with self.stored.connections.transaction() as tx:
                made = creation.retry(tx, self.stored.actor, thread.id, catalog, trace_id="1" * 32)
                return made.run_id

        if self._begin(thread, again):
            thread.is_retried()

    @precondition(lambda self: self.runs)
    @rule(who=pick, is_active=st.booleans())
    def cancel(self, who: int, is_active: bool) -> None:
        run = self._active(who) if is_active else at(self.runs, who)
        self.stored.cancel(run.id)
        if not run.state.is_terminal:
            run.is_cancelling = True
            if run.state != RunState.EXECUTING:
                run.ends_unheld(RunState.CANCELLED)

    @rule(who=pick, content=words, names_it=st.booleans())
    def answer(self, who: int, content: str, names_it: bool) -> None:
        if run := self._waiting(who):
            self._answer(run, content, run.question if names_it else None)

    @precondition(lambda self: self.runs)
    @rule(who=pick, content=words, request=st.sampled_from(["old", "none", "unknown"]))
    def answer_wrongly(self, who: int, content: str, request: str) -> None:
        """Answer a second time, without a question, or one that never was."""
        run = at(self.runs, who)
        request_id = None if request == "none" else new_id()
        if request == "old" and run.answers:
            request_id = at(list(run.answers), who)
        error: type[Exception] | None = StaleInput
        if request_id in run.answers:
            error = None if run.answers[request_id] == content else StaleInput
        elif run.state.is_terminal:
            error = NotActive
        elif run.state != RunState.WAITING:
            error = NotWaiting
        elif request_id is None:
            return  # right after all
        raises(error, lambda: self.stored.answer(run.id, content, request_id))

    @rule(who=pick)
    def let_a_question_expire(self, who: int) -> None:
        if run := self._waiting(who):
            self.stored.set(run.id, input_expires_at=ago(seconds=1))
            run.is_expired = True

    # ---- workers come, fall silent and are heard again ----

    @precondition(lambda self: len(self.workers) < 4)
    @rule()
    def hire(self) -> None:
        worker_id = self.stored.worker(
            started_at=ago(seconds=AN_HOUR), seen_at=ago(seconds=-AN_HOUR)
        )
        self.workers.append(ModelWorker(worker_id, SteppedWriter(self.connections)))

    @rule(who=pick)
    def fall_silent(self, who: int) -> None:
        """Silence a worker that is killed, stopped or cut off: the others cannot tell."""
        self._seen(at(self.workers, who), -2 * LEASE_SECONDS)

    @rule(who=pick)
    def be_heard_again(self, who: int) -> None:
        self._seen(at(self.workers, who), AN_HOUR)

    @precondition(lambda self: len(self.workers) > 2)
    @rule(who=pick)
    def be_forgotten(self, who: int) -> None:
        """Delete its row; its attempts continue all the same."""
        lost = at(self.workers, who)
        with self.stored.connections.transaction() as tx:
            tx.sql.execute(delete(workers).where(workers.c.id == lost.id))
        lost.is_silent = True
        self.workers.remove(lost)

    @rule()
    def all_be_silent_for_a_while(self) -> None:
        """Silence all while Postgres is unavailable: no run is lost, whichever process is back
        first.
        """
        for silent in self.workers:
            self._seen(silent, -2 * LEASE_SECONDS)
        self._sweep()
        for back in self.workers:
            # Those that are not back yet are not judged, though this one is heard.
            self._renew(back)
            sweep.sweep(self.stored.connections)
        for back in self.workers:
            self._seen(back, AN_HOUR)

    @rule()
    def sweep(self) -> None:
        self._sweep()

    @rule(who=pick, life=lives)
    def live(self, who: int, life: list[str]) -> None:
        """Play what happens to one run, before anything happens to others."""
        for what in life:
            attempt = self._held(who)
            if what == "crash":
                self._crash(attempt)
            elif what == "step":
                self._finish_step(attempt, is_turn=False)
                self._write_events(attempt.worker)
            else:
                self._release(attempt)

    @rule(who=pick, is_crash=st.booleans(), is_owner=st.booleans())
    def notice_an_orphan(self, who: int, is_crash: bool, is_owner: bool) -> None:
        """Give up a run that none of the worker's threads holds; no other worker may."""
        run = self._held(who).run
        if is_owner:
            self._give_up(run, is_crash=is_crash)
        else:
            self._report(run, new_id(), is_crash=is_crash)

    # ---- what a worker does ----

    @precondition(lambda self: self.runs)
    @rule(who=pick, by=pick, outage=outages)
    def claim(self, who: int, by: int, outage: str | None) -> None:
        """Claim any run: a message of the broker may be doubled or late."""
        self._claim(at(self.runs, who), at(self.workers, by), outage)

    @rule(who=pick, content=words, is_late=seldom)
    def stream(self, who: int, content: str, is_late: bool) -> None:
        attempt = self._one(who, is_late)
        attempt.claimed.stream_text(content)
        attempt.streams(content)

    @rule(who=pick, is_late=seldom)
    def void_text(self, who: int, is_late: bool) -> None:
        """Void the text, as the model is called again."""
        attempt = self._one(who, is_late)
        attempt.claimed.void_text("provider_retry")
        attempt.voids()

    @rule(who=pick, is_turn=st.booleans(), is_late=seldom)
    def finish_step(self, who: int, is_turn: bool, is_late: bool) -> None:
        self._finish_step(self._one(who, is_late), is_turn=is_turn)

    @precondition(lambda self: self.attempts)
    @rule(who=pick, outage=outages)
    def write_events(self, who: int, outage: str | None) -> None:
        """Commit what a worker's runs have gathered, all of them at once."""
        self._write_events(at(self.attempts, -who).worker, outage)

    @rule(who=pick, call=st.sampled_from(["call 1", "call 2"]), is_late=seldom, outage=outages)
    def begin_tool_call(self, who: int, call: str, is_late: bool, outage: str | None) -> None:
        """Begin a call, which is new, or this attempt's own once more; else it is not."""
        attempt = self._one(who, is_late)
        self.connections.outage = outage
        if not attempt.holds:
            raises(LeaseLost, lambda: attempt.claimed.begin_tool_call(call))
            return
        begun_by = attempt.run.begun_by.setdefault(call, attempt)
        assert (begun_by is attempt) == attempt.claimed.begin_tool_call(call)

    @rule(who=pick, is_late=seldom, output=words, outage=outages)
    def end_tool_call(self, who: int, is_late: bool, output: str, outage: str | None) -> None:
        attempt = self._one(who, is_late)
        if not attempt.run.begun_by:
            return
        call = at(list(attempt.run.begun_by), who)
        result = types.ToolResult(call, "tool", output, False, 1)
        self.connections.outage = outage
        if not attempt.holds:
            raises(LeaseLost, lambda: attempt.claimed.end_tool_call(result))
            return
        attempt.claimed.end_tool_call(result)
        attempt.run.outputs[call] = output

    # ---- how a worker lets go ----

    @rule(who=pick, outage=outages)
    def park(self, who: int, outage: str | None) -> None:
        self._park(self._held(who), outage)

    @rule(who=pick, outage=outages)
    def release(self, who: int, outage: str | None) -> None:
        self._release(self._held(who), outage)

    @rule(who=pick, content=st.sampled_from(["", "the answer"]), outage=outages)
    def complete(self, who: int, content: str, outage: str | None) -> None:
        self._complete(self._held(who), content, outage)

    @rule(who=pick, outage=outages)
    def fail(self, who: int, outage: str | None) -> None:
        """Fail it after its deadline."""
        attempt = self._held(who)
        partial = attempt.text
        if self._lets_go(attempt, LATE, RunState.FAILED, "run.failed", outage):
            attempt.run.error = LATE.error.code
            self._keeps(attempt.run, partial, is_partial=True)

    @rule(who=pick, outage=outages)
    def stop_for_a_cancel(self, who: int, outage: str | None) -> None:
        attempt = self._held(who)
        self.stored.cancel(attempt.run.id)
        attempt.run.is_cancelling = True
        partial = attempt.text
        assert self._lets_go(attempt, Cancelled(), RunState.CANCELLED, "run.cancelled", outage)
        self._keeps(attempt.run, partial, is_partial=True)

    @precondition(lambda self: self.late)
    @rule(who=pick, how=st.sampled_from(["write", "park", "release", "complete", "fail", "cancel"]))
    def be_too_late(self, who: int, how: str) -> None:
        """Try to write after the claim is over, whatever became of the run: nothing happens."""
        attempt = at(self.late, -who)
        if how == "write":
            for _ in range(3):
                self._finish_step(attempt, is_turn=True)
            self._write_events(attempt.worker)
            return
        outcomes: dict[str, Outcome] = {
            "park": ASKED,
            "release": HandedOff(),
            "complete": Completed(last_word("late")),
            "fail": LATE,
            "cancel": Cancelled(),
        }
        raises(LeaseLost, lambda: attempt.recorder.record(outcomes[how]))
        attempt.number()

    # ---- nothing is lost ----

    @rule()
    def every_run_ends(self) -> None:
        """Lose all workers: new ones and people finish what is left; clients get it all."""
        dead = list(self.workers)
        for lost in dead:
            self._seen(lost, -2 * LEASE_SECONDS)
        self.hire()
        self.hire()
        self.sweep()
        self.workers = [worker for worker in self.workers if worker not in dead]
        for who, thread in enumerate(self.threads):
            while thread.active is not None:
                attempt = self._held(who)
                self._complete(attempt, "the answer")
        for run in self.runs:
            stored = self.stored.events(run.id)
            # What was published is what was stored; some of it may never have been.
            assert set(self.stored.published(run.id)) <= set(stored)
            assert list(range(1, len(stored) + 1)) == [event.seq for event in stored]


# ---- the test ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def connections(connections: Connections) -> Connections:
    """A short lease: a worker can be silent for too long soon after Postgres has started.

    They were opened for a long one: in a part of it transactions must end, on a busy machine too.
    """
    short = replace(
        connections.settings, lease_seconds=LEASE_SECONDS, heartbeat_seconds=LEASE_SECONDS / 3
    )
    return replace(connections, settings=short)


@pytest.fixture
def postgres_is_up_for_longer_than_a_lease(connections: Connections) -> None:
    """Else its start would excuse who was silent."""
    query = text("SELECT pg_postmaster_start_time() < now() - make_interval(secs => :seconds)")

    def is_up() -> bool:
        with connections.reading() as sql:
            return bool(sql.scalar(query, {"seconds": 3 * LEASE_SECONDS}))

    eventually(is_up)


# When it fails, it takes minutes to find the shortest way there.
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("postgres_is_up_for_longer_than_a_lease")
def test_the_life_of_runs_in_every_order(
    connections: Connections,
    alice: User,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing is lost, duplicated or changed after it was written, in every order of people,
    workers, crashes and outages.
    """
    for module, constant in (
        (event_writer, "GATHER_SECONDS"),
        (event_writer, "COMMITS_PER_GATHERING"),
        (claimed_run, "RETRY_SECONDS"),
        (event_writer, "RETRY_SECONDS"),
    ):
        monkeypatch.setattr(module, constant, 0)
    caplog.set_level(logging.ERROR)
    stored = StoredRuns.of(connections, alice)
    run_state_machine_as_test(
        lambda: LifeCycle(stored),  # any factory does
        settings=hypothesis_settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
