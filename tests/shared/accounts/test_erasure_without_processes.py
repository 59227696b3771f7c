"""Erasures while no process is there that sweeps, as those that are repeated after a restore."""

import pytest
from sqlalchemy import update

from arkloop.shared.accounts import erasure
from arkloop.shared.accounts.erasure import RunsGoOn
from arkloop.shared.ids import new_id
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.threads import threads
from tests.end_users import ANN
from tests.stored_runs import StoredRuns, ago


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for processes that are over at once."""
    monkeypatch.setattr(erasure, "ALONE_AFTER_SECONDS", 0)
    monkeypatch.setattr(erasure, "_POLL_ALONE_SECONDS", 0.1)


def erase(stored: StoredRuns) -> int:
    """Make all threads of the org Ann's, erase her, and return the number of erased runs."""
    org_id = stored.actor.org_id
    with stored.connections.transaction() as tx:
        of_org = update(threads).where(threads.c.org_id == org_id)
        tx.sql.execute(of_org.values(end_user_id=ANN))
    record = erasure.erase_end_user(stored.connections, org_id, ANN)
    return int(record["runs"])


def test_runs_that_no_worker_holds_end(stored: StoredRuns) -> None:
    """Runs of the backup were queued, were executed by workers that are gone, or waited."""
    stored.create()
    stored.claimed(seen_at=ago(days=1))
    stored.park(stored.claimed(seen_at=ago(days=1)), new_id())

    assert 3 == erase(stored)


def test_a_run_that_a_worker_holds_is_left_to_it(
    stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It notices the cancel with a heartbeat, and ends the run itself."""
    monkeypatch.setattr(erasure, "RUNS_END_SECONDS", 0.5)
    claim = stored.claimed()

    with pytest.raises(RunsGoOn):
        erase(stored)

    assert RunState.EXECUTING == stored.state(claim.run_id)
    assert stored.row(claim.run_id)["cancel_requested_at"] is not None
