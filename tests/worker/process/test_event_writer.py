"""The writer: all runs' events in one commit, each under its own fence."""

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Row, create_engine, delete, select

from arkloop.shared.claim import Claim
from arkloop.shared.errors import LeaseLost, Unavailable
from arkloop.shared.events import event_log
from arkloop.shared.events.event_log import open_events, text_of
from arkloop.shared.events.stored_events import StoredEvent
from arkloop.shared.events.types import MessageDelta, RunCompleted, RunCost, RunResumed
from arkloop.shared.events.usage import Usage
from arkloop.shared.logs import about
from arkloop.shared.runs import endings
from arkloop.shared.runs.endings import Ending, Outcome
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.transitions import Totals
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import runs
from arkloop.shared.times import EPOCH
from arkloop.worker.contract.outcomes import CancelRequested, RunFailure
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.process import event_writer
from arkloop.worker.process.event_writer import EventWriter
from arkloop.worker.process.run_log import RunLog
from tests.stored_runs import StoredRuns
from tests.waiting import eventually, in_parallel

LogOf = Callable[[Claim], RunLog]
RESUMED = RunResumed(2, "deploy")


@pytest.fixture
def log_of(stored: StoredRuns) -> LogOf:
    """Call it for the log of a claim, with a writer that looks after it."""
    writer = EventWriter(stored.connections)
    return lambda claim: RunLog(
        claim.run_id, claim.fence, claim.last_seq, StopSignal(), writer.mark
    )


def test_what_is_added_is_stored_and_published(stored: StoredRuns, log_of: LogOf) -> None:
    """Table and stream have the same bytes under the same numbers."""
    claim = stored.claimed()
    log = log_of(claim)
    for i in range(300):
        log.add_text(MessageDelta, f"{i} ")
    log.add(RunCost(Usage(), 0))
    log.flush()

    table = stored.events(claim.run_id)
    assert list(range(1, len(table) + 1)) == [event.seq for event in table]
    eventually(lambda: table == stored.published(claim.run_id))
    with stored.connections.reading() as sql:
        assert "".join(f"{i} " for i in range(300)) == text_of(open_events(sql, claim.run_id))


def test_events_are_published_before_the_run_goes_on(stored: StoredRuns) -> None:
    """What the run does next would delay them."""
    went_on, published = threading.Event(), queue.Queue[bool]()

    def send(_connections: object, _notification: object) -> None:
        published.put(went_on.wait(0.2))

    writer = EventWriter(replace(stored.connections, send=send))
    claim = stored.claimed()
    log = RunLog(claim.run_id, claim.fence, claim.last_seq, StopSignal(), writer.mark)
    log.add(RESUMED)
    log.flush()
    went_on.set()

    assert not published.get(timeout=60)


def test_many_runs_are_stored_side_by_side(stored: StoredRuns, log_of: LogOf) -> None:
    """Each with its own numbers, whatever the others do."""
    held = [stored.claimed() for _ in range(10)]

    def write(number: int) -> None:
        log = log_of(held[number])
        for _ in range(20):
            log.add(RESUMED)
            log.flush()

    in_parallel(10, write)

    for claim in held:
        assert list(range(1, 22)) == [event.seq for event in stored.events(claim.run_id)]


def test_a_run_that_was_taken_over_is_told_to_stop(stored: StoredRuns, log_of: LogOf) -> None:
    """A run that was taken over is stopped and nothing of it is written, unlike other runs of the
    same commit.
    """
    zombie, neighbour = stored.claimed(), stored.claimed()
    stored.set(zombie.run_id, fence=zombie.fence + 1)
    logs = [log_of(zombie), log_of(neighbour)]
    for log in logs:
        log.add(RESUMED)
    logs[1].flush()

    eventually(lambda: logs[0].stop.lease_lost)
    with pytest.raises(LeaseLost):
        logs[0].flush()
    assert ["run.started"] == stored.types(zombie.run_id)
    assert ["run.started", "run.resumed"] == stored.types(neighbour.run_id)


def test_a_run_that_has_ended_is_told_to_stop(stored: StoredRuns, log_of: LogOf) -> None:
    """Nothing comes after a terminal event, not even with the right fence."""
    claim = stored.claimed()
    stored.finish(claim)
    log = log_of(claim)
    log.add(RESUMED)

    eventually(lambda: log.stop.lease_lost)
    assert "run.completed" == stored.types(claim.run_id)[-1]


def test_a_cancel_comes_back_with_the_commit(stored: StoredRuns, log_of: LogOf) -> None:
    """A worker that missed every signal of Redis is notified all the same."""
    claim = stored.claimed()
    stored.cancel(claim.run_id)
    log = log_of(claim)
    log.add(RESUMED)

    with pytest.raises(CancelRequested):
        log.stop.wait(60)


def test_a_locked_run_holds_up_nobody_else(stored: StoredRuns, log_of: LogOf) -> None:
    """Its own events go when the lock is gone."""
    locked, free = stored.claimed(), stored.claimed()
    logs = [log_of(locked), log_of(free)]
    with stored.connections.transaction() as tx:
        tx.sql.execute(select(runs.c.id).where(runs.c.id == locked.run_id).with_for_update())
        for log in logs:
            log.add(RESUMED)
        logs[1].flush()

        assert 1 == stored.last_seq(locked.run_id)
    logs[0].flush()

    assert 2 == stored.last_seq(locked.run_id)


def test_events_wait_for_a_postgres_that_is_away(stored: StoredRuns) -> None:
    """Events wait for Postgres in order, and none is lost or doubled."""
    claim = stored.claimed()
    connections = replace(
        stored.connections, engine=create_engine("postgresql+psycopg://nobody@/?host=/nowhere")
    )
    log = RunLog(
        claim.run_id,
        claim.fence,
        claim.last_seq,
        StopSignal(),
        EventWriter(connections).mark,
    )
    flushed = threading.Event()
    log.add(RESUMED)
    log.add_text(MessageDelta, "a")

    def flush() -> None:
        log.flush()
        flushed.set()

    threading.Thread(target=flush).start()
    assert not flushed.wait(0.3)
    connections.engine = stored.connections.engine

    assert flushed.wait(60)
    assert ["run.started", "run.resumed", "message.delta"] == stored.types(claim.run_id)


def test_a_commit_whose_answer_was_lost_is_no_harm(stored: StoredRuns) -> None:
    """The same events again, with the end of the run: stored once, and it ends."""
    claim = stored.claimed()
    log = RunLog(claim.run_id, claim.fence, claim.last_seq, StopSignal(), lambda _: None)
    log.add(RESUMED)
    taken, _ = log.take()
    with stored.connections.transaction() as tx:
        event_log.store(tx, {claim.run_id: taken})
    log.give_back()

    end = log.withdraw(RunCompleted(None, Usage(), 0, "stop"))
    ending = Ending(claim=claim, state=RunState.COMPLETED, stored=end, totals=Totals())
    with stored.connections.statement() as tx:
        assert [Outcome.ENDED] == endings.end(tx, [ending])

    assert ["run.started", "run.resumed", "run.completed"] == stored.types(claim.run_id)


def test_a_run_that_cannot_be_stored_does_not_take_others_along(
    stored: StoredRuns, log_of: LogOf
) -> None:
    """It fails; what it can still say follows its last stored event; its neighbour continues."""
    poison, neighbour = stored.claimed(), stored.claimed()
    logs = [log_of(poison), log_of(neighbour)]
    with logs[0]._changed:
        logs[0]._ready.append(StoredEvent(2, "run.resumed", "a payload with a \x00"))
        logs[0]._last_seq = 2
        logs[0]._added(logs[0])
        logs[1].add(RESUMED)
    logs[1].flush()

    eventually(lambda: logs[0].stop._reason is not None)
    with pytest.raises(RunFailure, match="could not be stored"):
        logs[0].stop.check()
    assert [1, 2] == [event.seq for event in stored.events(neighbour.run_id)]
    assert [2] == [event.seq for event in logs[0].withdraw(RESUMED)]


def test_events_after_lost_ones_are_not_stored(
    stored: StoredRuns, log_of: LogOf, caplog: pytest.LogCaptureFixture
) -> None:
    """A failover to a replica that lagged: its worker numbers from memory and must not go on."""
    run, neighbour = stored.claimed(), stored.claimed()
    with about(org_id=str(run.org_id), trace_id=run.trace_id):
        logs = [log_of(run), log_of(neighbour)]
    for log in logs:
        log.add(RESUMED, RESUMED)
        log.flush()
    with stored.connections.transaction() as tx:
        lost = (run_events.c.run_id == run.run_id) & (run_events.c.seq > 1)
        tx.sql.execute(delete(run_events).where(lost))

    for log in logs:
        log.server = EPOCH  # another one than that which they write to now
        log.add(RESUMED)
    logs[1].flush()

    eventually(lambda: logs[0].stop.lease_lost)
    with pytest.raises(LeaseLost):
        logs[0].flush()
    assert [1] == [event.seq for event in stored.events(run.run_id)]
    assert [1, 2, 3, 4] == [event.seq for event in stored.events(neighbour.run_id)]
    [error] = [record for record in caplog.records if "lost committed events" in record.message]
    assert (str(run.run_id), str(run.org_id), run.trace_id) == (
        *(getattr(error, name) for name in ("run_id", "org_id", "trace_id")),
    )


class LockedWriter(EventWriter):
    """A writer behind which somebody locks a run, once its last event was looked for."""

    release: threading.Event

    def _stop_cut_off(self, batch: Mapping[RunLog, Sequence[StoredEvent]]) -> None:
        super()._stop_cut_off(batch)
        locked, self.release = threading.Event(), threading.Event()
        [run] = batch
        threading.Thread(target=self._hold, args=(run, locked), daemon=True).start()
        assert locked.wait(60)

    def _hold(self, run: RunLog, locked: threading.Event) -> None:
        with self._connections.transaction() as tx:
            tx.sql.execute(select(runs).where(runs.c.id == run.run_id).with_for_update())
            locked.set()
            assert self.release.wait(60)


def test_after_a_restart_a_run_that_is_locked_is_written_later(stored: StoredRuns) -> None:
    """The statement that met another server has stored nothing, though it found the row."""
    claim, writer = stored.claimed(), LockedWriter(stored.connections)
    log = RunLog(claim.run_id, claim.fence, claim.last_seq, StopSignal(), writer.mark)
    log.server = EPOCH  # Postgres was started again since
    before = stored.events(claim.run_id)

    log.add(RESUMED)
    eventually(lambda: hasattr(writer, "release"))
    time.sleep(5 * event_writer.LOCKED_SECONDS)
    assert before == stored.events(claim.run_id)
    log.stop.check()
    writer.release.set()
    log.flush()

    assert [1, 2] == [event.seq for event in stored.events(claim.run_id)]


def test_the_log_of_a_deleted_run_stops(stored: StoredRuns, log_of: LogOf) -> None:
    """Its row is gone, not locked: nobody tries again for ever."""
    claim = stored.claimed()
    log = log_of(claim)
    with stored.connections.transaction() as tx:
        tx.sql.execute(delete(runs).where(runs.c.id == claim.run_id))

    log.add(RESUMED)

    eventually(lambda: log.stop.lease_lost)
    assert ([], None) == log.take()


class SlowWriter(EventWriter):
    """A writer whose commits take long; it ticks on request."""

    def _run(self) -> None:
        pass

    def _store(self, batch: Mapping[RunLog, Sequence[StoredEvent]]) -> dict[RunLog, float]:
        time.sleep(0.2)
        return super()._store(dict(batch))


@pytest.mark.parametrize(("commits", "pieces"), [(0, 5), (4, 2)])
def test_when_commits_take_long_text_is_gathered_for_longer(
    stored: StoredRuns, monkeypatch: pytest.MonkeyPatch, commits: int, pieces: int
) -> None:
    """Slow commits make text gather longer, so that pieces do not get ever smaller, and no text is
    lost.
    """
    monkeypatch.setattr(event_writer, "GATHER_SECONDS", 0.0)
    monkeypatch.setattr(event_writer, "COMMITS_PER_GATHERING", commits)
    claim = stored.claimed()
    writer = SlowWriter(stored.connections)
    log = RunLog(claim.run_id, claim.fence, claim.last_seq, StopSignal(), writer.mark)
    writer._gather_seconds = 0.0

    for piece in "abcde":
        log.add_text(MessageDelta, piece)
        writer._tick()
    log.add(RESUMED)
    writer._tick()

    assert pieces == stored.types(claim.run_id).count("message.delta")
    texts = [
        event_log.data_of(event.payload)["content"]
        for event in stored.events(claim.run_id)
        if event.type == "message.delta"
    ]
    assert "abcde" == "".join(texts)


class NarrowWriter(EventWriter):
    """A writer whose Postgres takes too long for statements of more than `most` bytes."""

    most = 250_000

    def __init__(self, connections: Connections) -> None:
        self.sizes: list[int] = []
        super().__init__(connections)

    def _write(
        self, batch: Mapping[RunLog, Sequence[StoredEvent]], server: datetime | None
    ) -> dict[UUID, Row[Any]]:
        self.sizes.append(sum(e.stored_size for events in batch.values() for e in events))
        if self.sizes[-1] > self.most:
            raise Unavailable()
        return super()._write(batch, server)


@pytest.mark.parametrize("most", [600_000, 250_000])
def test_prompts_of_many_runs_take_several_commits(
    stored: StoredRuns, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """A statement has a limited size, and a smaller one where that takes too long."""
    monkeypatch.setattr(event_writer, "MAX_BATCH_BYTES", 500_000)
    monkeypatch.setattr(event_writer, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(NarrowWriter, "most", most)
    writer = NarrowWriter(stored.connections)
    prompt = b"{}\n" + bytes(100_000)
    logs = []
    for claim in (stored.claimed() for _ in range(12)):
        log = RunLog(claim.run_id, claim.fence, claim.last_seq, StopSignal(), lambda _: None)
        log.add_prompt(prompt)
        log.add(RESUMED)
        logs.append(log)
    with writer._lock:
        writer._dirty |= dict.fromkeys(logs, time.monotonic())
    writer._wake.set()
    for log in logs:
        eventually(lambda log=log: log._committed_seq == log._last_seq)  # type: ignore[misc]  # its default has no type

    assert max(writer.sizes) < 600_000
    assert 12 * len(prompt) < sum(size for size in writer.sizes if size <= most)
