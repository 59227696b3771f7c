"""The money that a run behind an agent worker has reserved, when its worker is lost."""

from uuid import UUID

import pytest
from sqlalchemy import func, select, update

from arkloop.shared import ids
from arkloop.shared.runs import recovery, sweep
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.billing import reservations
from arkloop.shared.storage.tables.runs import workers
from tests.api.endpoints.agent_worker import MakeWorker, Worker, cost, worker
from tests.clients import User

pytestmark = pytest.mark.own_database

__all__ = ["worker"]  # a fixture


def lose(connections: Connections, lost: Worker, *, by_sweep: bool) -> None:
    """Take the runs of a worker that is silent for its lease, or has closed its connection."""
    of_lost = workers.c.id == UUID(lost.id)
    if not by_sweep:
        with connections.reading() as sql:
            seen_at = sql.scalar(select(workers.c.seen_at).where(of_lost))
        assert seen_at is not None
        named = [UUID(lost.run["run_id"])]
        recovery.recover_from(connections, UUID(lost.id), seen_at, named)
        return
    silent = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, 60)
    with connections.transaction() as tx:
        tx.sql.execute(update(workers).where(of_lost).values(seen_at=silent))
        tx.sql.execute(workers.insert().values(id=ids.new_id(), hostname="h", pid=1, lock_key=1))
    sweep.sweep(connections)


@pytest.mark.parametrize("by_sweep", [True, False])
def test_a_lost_run_keeps_only_its_cost_reserved(
    alice: User, worker: MakeWorker, connections: Connections, by_sweep: bool
) -> None:
    """Others use the rest, also if no worker of its agent comes back; its cost counts once."""
    alice.call("PUT", "/v1/budget", json={"max_cost_usd_per_month": 1})
    alice.post("/v1/personas", json={"key": "custom", "agent": "mine"})
    alice.post("/v1/runs", json={"persona_id": "custom", "message": "Hi"})
    lost, heir = worker(), worker()
    lost.take()
    lost.write("append", cost(0.25))
    own = {"run_id": lost.run["run_id"], "fence": lost.run["fence"]}
    assert lost.post("reserve", **own, usd=0.5).json["is_reserved"]

    before = alice.get("/v1/budget").json
    lose(connections, lost, by_sweep=by_sweep)
    after = alice.get("/v1/budget").json
    heir.take()
    heir.write("complete", content="Done.")

    ended = alice.get("/v1/budget").json
    assert [(0, 0.75), (0, 0.25), (0.25, 0)] == [
        (one["spent_usd"], one["held_usd"]) for one in (before, after, ended) if one is not None
    ]


@pytest.mark.parametrize("end_user_id", [None, "ann"])
def test_the_error_has_amounts_for_the_org_alone(
    alice: User, worker: MakeWorker, end_user_id: str | None
) -> None:
    """An end user reads the events of their runs, but not what the org lets them cost."""
    custom = {"key": "poor", "agent": "mine", "max_cost_usd": 1, "on_limit": "fail"}
    alice.post("/v1/personas", json=custom)
    body = {"persona_id": "poor", "message": "Hi", "end_user_id": end_user_id}
    made = alice.post("/v1/runs", json=body).json or {}
    mine = worker()
    mine.take()

    mine.write("append", cost(1.25))

    error = (alice.get(f"/v1/runs/{made['run_id']}").json or {})["error"]
    assert "budget.exhausted" == error["code"]
    assert (end_user_id is None) == ("1.25 USD" in error["message"])
    assert (end_user_id is None) == ("is 1 USD" in error["message"])


def test_a_lost_run_without_a_budget_reserves_nothing(
    alice: User, worker: MakeWorker, connections: Connections
) -> None:
    """It has no reservation before, and none after."""
    alice.post("/v1/personas", json={"key": "custom", "agent": "mine"})
    alice.post("/v1/runs", json={"persona_id": "custom", "message": "Hi"})
    lost = worker()
    lost.take()

    lose(connections, lost, by_sweep=True)

    with connections.reading() as sql:
        assert 0 == sql.scalar(select(func.count()).select_from(reservations))
    assert 2 == worker().take()["attempt"]
