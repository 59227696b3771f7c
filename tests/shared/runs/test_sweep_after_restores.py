"""The sweep of a restored database, in which time has passed for runs that wait for somebody.

An operator has played the guide's statement before any process started.
"""

from datetime import timedelta
from typing import Any

import pytest

from arkloop.shared.claim import Claim
from arkloop.shared.ids import new_id
from arkloop.shared.runs import pending_calls, sweep
from arkloop.shared.runs.states import ResultSource
from arkloop.shared.storage.connections import Connections
from arkloop.shared.times import now, rfc3339
from tests.restore_guide import GIVES_TIME
from tests.shared.runs.test_pending_calls import begin, give, park, results_of, shown_ago
from tests.stored_runs import StoredRuns, ago

DAY = timedelta(days=1)


def give_time(connections: Connections) -> None:
    with connections.transaction() as tx:
        tx.sql.exec_driver_sql(GIVES_TIME)


def asking(stored: StoredRuns, *, days: float, **fields: Any) -> Claim:
    """Let a run wait for somebody whose time is over in `days`."""
    claim = stored.claimed()
    until = shown_ago(-days * DAY.total_seconds())
    stored.park(claim, new_id(), expires_at=until, **fields)
    stored.set(claim.run_id, input_expires_at=ago(days=-days))
    return claim


@pytest.mark.parametrize("kind", ["question", "tool_confirmation", "authorization"])
def test_runs_that_wait_for_people_have_a_day_after_a_restore(
    stored: StoredRuns, kind: str
) -> None:
    """Runs that have longer keep their time, and clients are shown the time that counts."""
    late, patient = asking(stored, days=-3, kind=kind), asking(stored, days=20, kind=kind)

    give_time(stored.connections)
    sweep.sweep(stored.connections)

    for claim, days in ((late, 1), (patient, 20)):
        row = stored.row(claim.run_id)
        until = row["input_expires_at"]
        assert ("waiting", rfc3339(until)) == (row["state"], row["pending_input"]["expires_at"])
        assert abs(until - now() - days * DAY) < timedelta(minutes=10)


def test_runs_that_wait_for_results_have_a_day_after_a_restore(stored: StoredRuns) -> None:
    """A call with a time of its own keeps that: it has a result once its time is over."""
    claim = stored.claimed()
    for call in ("late", "slow", "open"):
        begin(stored, claim, call, ResultSource.CLIENT)
    park(stored, claim, "late", "slow", "open", late=60, slow=-600)
    pending = stored.row(claim.run_id)["pending_input"] | {"expires_at": shown_ago(7200)}
    stored.set(claim.run_id, pending_input=pending, input_expires_at=ago(hours=2))

    give_time(stored.connections)
    sweep.sweep(stored.connections)

    row = stored.row(claim.run_id)
    assert "waiting" == row["state"]
    assert ["slow", "open"] == [call["tool_call_id"] for call in row["pending_input"]["calls"]]
    assert timedelta(minutes=5) < row["input_expires_at"] - now() < timedelta(minutes=15)
    give(stored, claim.run_id, "slow", "open")
    assert "queued" == stored.state(claim.run_id)
    found = results_of(stored, claim.run_id, "late", "slow", "open")
    assert {"late": pending_calls.TOO_LATE, "slow": "done", "open": "done"} == found


def test_a_form_of_a_call_that_was_lost_gets_no_time(stored: StoredRuns) -> None:
    """The worker that was in the middle of the call is gone, so the run continues at once."""
    claim = asking(stored, days=-1, kind="form")
    held = {"is_held": True, "on_expiry": "continue"}
    stored.set(claim.run_id, pending_input=stored.row(claim.run_id)["pending_input"] | held)

    give_time(stored.connections)
    sweep.sweep(stored.connections)

    assert "queued" == stored.state(claim.run_id)
