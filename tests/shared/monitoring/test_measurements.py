"""Measurements of the whole installation."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import NullPool, create_engine

from arkloop.shared.accounts import suspensions
from arkloop.shared.monitoring import measurements
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections
from tests import stored_deliveries
from tests.clients import Register, User
from tests.query_plans import Plans, noted
from tests.stored_runs import StoredRuns, ago


@pytest.fixture(autouse=True)
def measure_anew(connections: Connections) -> None:
    """The interval since the last measurement is over, and no run is unended."""
    with connections.transaction() as tx:
        tx.sql.exec_driver_sql("UPDATE measurements SET taken_at = 'epoch'")
        tx.sql.exec_driver_sql("DELETE FROM workers")
        tx.sql.exec_driver_sql(
            "UPDATE runs SET state = 'cancelled', ended_at = now() WHERE ended_at IS NULL"
        )


def test_a_queue_is_measured_by_the_size_of_its_orgs(
    stored: StoredRuns, alice: User, make_run: Callable[..., UUID], register: Register
) -> None:
    """A flood of one org and the single run of another are two classes, each with its age."""
    flood = register()
    for number in range(3):
        make_run(flood, flood.thread(), state=RunState.QUEUED, queued_at=ago(seconds=100 - number))
    make_run(alice, alice.thread(), state=RunState.QUEUED, queued_at=ago(seconds=20))
    make_run(alice, alice.thread(), state=RunState.WAITING)
    stored.worker()
    stored.worker(seen_at=ago(seconds=60))
    stored.worker(org_id=alice.org_id)

    data = measurements.current(stored.connections).data

    queue = {row["crowd"]: row for row in data["queue"]}
    assert {"1", "2-10"} == {*queue}
    assert (1, 1, 3, 1) == tuple(queue[c][n] for c in ("1", "2-10") for n in ("runs", "orgs"))
    assert 20 <= queue["1"]["oldest_seconds"] < 90 and 100 <= queue["2-10"]["oldest_seconds"] < 170
    assert {"queued": 4, "waiting": 1} == data["states"]
    assert (1, 1) == (data["workers"], data["agent_workers"])


def test_queued_runs_of_a_suspended_org_are_not_counted(
    stored: StoredRuns, alice: User, make_run: Callable[..., UUID]
) -> None:
    """Neither those for the service's workers nor those for its own; what waits is."""
    for agent in (None, "desk"):
        make_run(
            alice, alice.thread(), state=RunState.QUEUED, queued_at=ago(seconds=9), agent=agent
        )
    make_run(alice, alice.thread(), state=RunState.WAITING)
    before = measurements.current(stored.connections).data
    assert (1, {"queued": 2, "waiting": 1}) == (before["agent_queue"], before["states"])
    with stored.connections.transaction() as tx:
        suspensions.suspend(tx, alice.org_id, "Unpaid bills")
        tx.sql.exec_driver_sql("UPDATE measurements SET taken_at = 'epoch'")

    after = measurements.current(stored.connections).data

    assert (0, [], {"waiting": 1}) == (after["agent_queue"], after["queue"], after["states"])


def test_deliveries_that_nobody_claims_are_not_late(
    connections: Connections, alice: User, register: Register
) -> None:
    """Neither those to endpoints that are disabled or deleted, or of an org that has moved, nor
    those that wait for an earlier one of their run.
    """
    stored_deliveries.unclaimed(connections, alice, register(), ago(days=9), ago(seconds=-60))
    with connections.transaction() as tx:
        endpoint = stored_deliveries.endpoint(tx, alice.org_id)
        stored_deliveries.deliveries(tx, alice.org_id, endpoint, ago(seconds=100), ago(seconds=300))

    late = measurements.current(connections).data["webhooks"]
    stored_deliveries.delete_all(connections)

    assert 1 == late["deliveries"]
    assert 100 <= late["oldest_seconds"] < 170


def test_postgres_is_measured_once_in_an_interval(stored: StoredRuns) -> None:
    """A second question reads what was found."""
    first = measurements.current(stored.connections)
    stored.create()
    again = measurements.current(stored.connections)
    assert first == again
    assert {} == again.data["states"]


def test_a_measurement_of_the_future_does_not_last(stored: StoredRuns) -> None:
    """Postgres' clock was set back by an hour: the next question is answered anew."""
    with stored.connections.transaction() as tx:
        tx.sql.exec_driver_sql(
            "UPDATE measurements SET taken_at = now() + interval '1 hour', data = '{}'"
        )

    measured = measurements.current(stored.connections)

    assert measured.at < datetime.now(UTC) + timedelta(minutes=1)
    assert 0 == measured.data["workers"]


_OLD_RUNS = """
INSERT INTO runs (id, org_id, thread_id, created_by_user_id, trace_id, persona_id, route_id, model,
    position, state, queued_at, ended_at)
SELECT gen_random_uuid(), org_id, thread_id, created_by_user_id, trace_id, persona_id, route_id,
    model, position + number, 'completed', queued_at, now()
FROM runs, generate_series(1, 5000) AS number WHERE id = %(run_id)s
"""


def test_measuring_reads_no_old_runs(stored: StoredRuns) -> None:
    """Indexes of what has not ended are read, however many runs there were."""
    run_id = stored.create()
    patient = create_engine(stored.connections.settings.database_url, poolclass=NullPool)
    with patient.begin() as sql:  # no time limit
        sql.exec_driver_sql("SELECT set_config('arkloop.orgs', '*', true)")
        sql.exec_driver_sql(_OLD_RUNS, {"run_id": run_id})
        sql.exec_driver_sql("ANALYZE runs")
    with noted(stored.connections) as statements:
        measurements.current(stored.connections)
    measure = next(s for s in statements if "UPDATE measurements" in s[0])
    used = Plans(stored.connections, measure).indexes()
    assert {"uq_runs_unended_thread_id", "ix_runs_waiting_thread_id_position"} <= used
