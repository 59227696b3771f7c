"""Events that the writer has no memory to store."""

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Row

from arkloop.shared import times
from arkloop.shared.events.event_log import open_events, text_of
from arkloop.shared.events.stored_events import StoredEvent
from arkloop.shared.events.types import MessageDelta, RunResumed
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.process.event_writer import EventWriter
from arkloop.worker.process.run_log import RunLog
from tests.stored_runs import StoredRuns
from tests.waiting import eventually


class ShortWriter(EventWriter):
    """A writer that has no memory for its first statement."""

    failures = 0

    def _write(
        self, batch: Mapping[RunLog, Sequence[StoredEvent]], server: datetime | None
    ) -> dict[UUID, Row[Any]]:
        if not self.failures:
            self.failures += 1
            raise MemoryError
        return super()._write(batch, server)


class ShortLog(RunLog):
    """A log that cannot take its events back while memory is short."""

    failures = 0

    def give_back(self) -> None:
        if self.failures < 2:
            self.failures += 1
            raise MemoryError
        super().give_back()


class ShortTimes(dict[RunLog, float]):
    """Times of commits that cannot be read at first."""

    failures = 0

    def items(self) -> Any:
        if not self.failures:
            self.failures += 1
            raise MemoryError
        return super().items()


def text_so_far(stored: StoredRuns, run_id: UUID) -> str:
    with stored.connections.reading() as sql:
        return text_of(open_events(sql, run_id))


def test_events_are_stored_once_there_is_memory(
    stored: StoredRuns, caplog: pytest.LogCaptureFixture
) -> None:
    """Their runs continue, each with all that it has said."""
    writer = ShortWriter(stored.connections)
    logs = []
    for claim in (stored.claimed(), stored.claimed()):
        logs.append(RunLog(claim.run_id, claim.fence, claim.last_seq, StopSignal(), writer.mark))
    for log in logs:
        log.add(RunResumed(2, "deploy"))
    for log in logs:
        log.flush()

    for log in logs:
        assert ["run.started", "run.resumed"] == stored.types(log.run_id)
    assert 1 == writer.failures
    assert "retrying to write events: no memory is left: MemoryError" in caplog.text


def test_a_log_that_cannot_be_read_is_not_forgotten(stored: StoredRuns) -> None:
    """It comes again, with the others of its batch, without a further piece of text."""
    failures: list[int] = []

    def now() -> datetime:
        if not failures:
            failures.append(1)
            raise MemoryError
        return times.now()

    writer, claim = EventWriter(stored.connections), stored.claimed()
    log = RunLog(claim.run_id, claim.fence, claim.last_seq, StopSignal(), writer.mark, now)
    log.add_text(MessageDelta, "a")

    eventually(lambda: text_so_far(stored, claim.run_id) == "a")
    assert [1] == failures


def test_a_log_that_cannot_be_read_holds_up_no_other(
    stored: StoredRuns, caplog: pytest.LogCaptureFixture
) -> None:
    """Other runs may need less memory. It comes as well, once there is enough for it."""
    failures: list[int] = []
    is_short = threading.Event()
    is_short.set()

    def now() -> datetime:
        if is_short.is_set():
            failures.append(1)
            raise MemoryError
        return times.now()

    writer, large, small = EventWriter(stored.connections), stored.claimed(), stored.claimed()
    log = RunLog(large.run_id, large.fence, large.last_seq, StopSignal(), writer.mark, now)
    log.add_text(MessageDelta, "a")
    eventually(lambda: len(failures) > 1)
    log = RunLog(small.run_id, small.fence, small.last_seq, StopSignal(), writer.mark)
    log.add(RunResumed(2, "deploy"))

    eventually(lambda: stored.types(small.run_id) == ["run.started", "run.resumed"])
    assert "retrying to write events: no memory is left: MemoryError" in caplog.messages
    is_short.clear()
    eventually(lambda: text_so_far(stored, large.run_id) == "a")


def test_events_that_cannot_be_given_back_are_stored(stored: StoredRuns) -> None:
    """A shortage that lasts leaves no hole among the events, and none are late for ever."""
    writer, claim = ShortWriter(stored.connections), stored.claimed()
    log = ShortLog(claim.run_id, claim.fence, claim.last_seq, StopSignal(), writer.mark)
    log.add(RunResumed(2, "deploy"))

    eventually(lambda: stored.types(claim.run_id) == ["run.started", "run.resumed"])
    log.add(RunResumed(3, "deploy"))
    log.flush()
    assert [1, 2, 3] == [event.seq for event in stored.events(claim.run_id)]
    assert 1 == log.failures


def test_a_commit_that_cannot_begin_forgets_no_log(stored: StoredRuns) -> None:
    """Its events are stored with the next one, which comes by itself."""
    writer, claim = EventWriter(stored.connections), stored.claimed()
    writer._due = times_of_commits = ShortTimes()
    log = RunLog(claim.run_id, claim.fence, claim.last_seq, StopSignal(), writer.mark)
    log.add(RunResumed(2, "deploy"))

    eventually(lambda: stored.types(claim.run_id) == ["run.started", "run.resumed"])
    assert 1 == times_of_commits.failures
