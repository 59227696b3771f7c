"""The money that a run has reserved for its last call while it waits."""

from decimal import Decimal
from uuid import UUID

import pytest
from sqlalchemy import select

from arkloop.shared.catalog import published_personas
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.billing import reservations
from arkloop.worker.attempt import execution
from arkloop.worker.process.process import WorkerProcess
from tests.caller import script
from tests.stored_runs import StoredRuns
from tests.worker.attempt.executed_runs import scripted

TASK = {"tool": "delegate", "args": {"persona": "plain", "task": script({"say": "ok"})}}


def reserve(stored: StoredRuns, run_id: UUID) -> Decimal:
    """Return what the run has reserved beyond its cost."""
    with stored.connections.reading() as sql:
        columns = select(reservations.c.held_usd, reservations.c.cost_usd)
        held, cost = sql.execute(columns.where(reservations.c.run_id == run_id)).one()
    return Decimal(held - cost)


def test_sub_runs_leave_the_reserve_of_a_run_that_was_approved(
    stored: StoredRuns, process: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt that follows the approval waits for them with the same reserve."""
    monkeypatch.setattr(execution, "LINGER_SECONDS", 0.0)  # nobody answers meanwhile
    fields = {"delegates": ["plain"], "require_approval": ["delegate"], "max_cost_usd": 0.5}
    with stored.connections.transaction() as tx:
        published_personas.publish(tx, stored.actor, "boss", "1", fields)
    run_id = scripted(stored, TASK, {"say": "done"}, persona_id="boss@1")
    execution.execute(process, run_id)
    assert RunState.WAITING == stored.state(run_id)
    before = reserve(stored, run_id)

    stored.answer(run_id, "yes")
    execution.execute(process, run_id)

    assert RunState.SUSPENDED == stored.state(run_id)
    assert 0 < before == reserve(stored, run_id)
