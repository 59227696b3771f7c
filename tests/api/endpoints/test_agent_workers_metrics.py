"""The ends of an agent worker's runs in the metrics and the log of the service."""

from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import func, update

from arkloop.shared import metrics
from arkloop.shared.runs import sweep
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.runs import agent_runs
from tests.api.endpoints.agent_worker import MakeWorker, settings, start, worker
from tests.clients import User
from tests.counted import counted

pytestmark = pytest.mark.own_database

__all__ = ["settings", "start", "worker"]  # fixtures


def test_a_failure_is_counted_and_logged_once(
    worker: MakeWorker, start: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    """A repeated request, as after a response that was lost, counts nothing more."""
    run_id = start()
    mine = worker()
    mine.take()
    seq = mine.seq

    with counted(metrics.RUNS_ENDED) as seen:
        sent = [mine.write("fail", message="The model is gone.", seq=seq) for _ in range(2)]

    assert [200, 200] == [one.status_code for one in sent]
    assert {("failed", "agent.failed"): [1]} == seen
    [line] = [record for record in caplog.records if "run failed" in record.getMessage()]
    assert (run_id, "agent.failed") == (line.run_id, line.error_code)
    assert "The model is gone." not in line.getMessage()


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_an_end_is_counted(
    is_cancelled: bool,
    alice: User,
    worker: MakeWorker,
    start: Callable[..., str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A run that completes or is cancelled is no line of the log."""
    run_id = start()
    mine = worker()
    mine.take()

    with counted(metrics.RUNS_ENDED) as seen:
        if is_cancelled:
            alice.post(f"/v1/runs/{run_id}:cancel")
        mine.write("complete", content="Done.")

    assert {("cancelled" if is_cancelled else "completed", ""): [1]} == seen
    assert not [record for record in caplog.records if "run failed" in record.getMessage()]


@pytest.mark.parametrize(
    ("on_limit", "end"), [("answer", ("completed", "")), ("fail", ("failed", "run.timeout"))]
)
def test_an_end_by_the_sweep_is_counted_once(
    on_limit: str,
    end: tuple[str, str],
    alice: User,
    worker: MakeWorker,
    connections: Connections,
) -> None:
    """A run whose time is over fails, or lands; either end is the sweep's."""
    custom = {"key": "short", "agent": "mine", "on_limit": on_limit}
    alice.post("/v1/personas", json=custom)
    made = alice.post("/v1/runs", json={"persona_id": "short", "message": "Hi"}).json
    assert made is not None
    worker().take()
    past = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, 10)
    with connections.transaction() as tx:
        of_run = update(agent_runs).where(agent_runs.c.run_id == UUID(made["run_id"]))
        tx.sql.execute(of_run.values(deadline_at=past))

    with counted(metrics.RUNS_ENDED) as seen:
        sweep.sweep(connections)

    assert {end: [1]} == seen
