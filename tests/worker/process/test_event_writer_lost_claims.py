"""Claims that Postgres has lost, whose workers still execute the runs."""

import pytest
from sqlalchemy import delete

from arkloop.shared.errors import LeaseLost
from arkloop.shared.events.types import RunResumed
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.times import EPOCH
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.process.event_writer import EventWriter
from arkloop.worker.process.run_log import RunLog
from tests.stored_runs import StoredRuns


def test_a_claim_that_is_lost_writes_nothing_into_the_next_one(stored: StoredRuns) -> None:
    """The next claim has another fence, though its first event has the same number."""
    lost, writer = stored.claimed(), EventWriter(stored.connections)
    log = RunLog(lost.run_id, lost.fence, lost.last_seq, StopSignal(), writer.mark)
    with stored.connections.transaction() as tx:
        tx.sql.execute(delete(run_events).where(run_events.c.run_id == lost.run_id))
    stored.set(lost.run_id, state=RunState.QUEUED, owner=None, fence=0, attempt=0, started_at=None)
    claim = stored.claim(lost.run_id)

    log.server = EPOCH  # another one than that which the claim was committed to
    log.add(RunResumed(2, "deploy"))

    with pytest.raises(LeaseLost):
        log.flush()
    assert claim is not None and lost.last_seq == claim.last_seq
    assert [1] == [event.seq for event in stored.events(lost.run_id)]
