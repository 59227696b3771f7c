"""The run that a worker executes while the queue is long."""

from uuid import UUID

import pytest

from arkloop.shared.runs.states import RunState
from arkloop.worker.attempt import execution
from arkloop.worker.process import process as process_module
from arkloop.worker.process.process import WorkerProcess
from tests.clients import Register
from tests.stored_runs import StoredRuns, ago


@pytest.fixture(autouse=True)
def long_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait that is long on a busy machine, too: runs of these tests have waited for a minute."""
    monkeypatch.setattr(process_module, "LONG_WAIT_SECONDS", 30.0)


@pytest.fixture
def other(stored: StoredRuns, register: Register) -> StoredRuns:
    """Runs of another org."""
    return StoredRuns.of(stored.connections, register())


def ended(of: StoredRuns, *run_ids: UUID) -> list[bool]:
    return [RunState.COMPLETED == of.state(run_id) for run_id in run_ids]


def test_behind_a_flood_the_run_of_another_org_has_its_turn(
    stored: StoredRuns, other: StoredRuns, process: WorkerProcess
) -> None:
    """Messages of the flood start it, and its own message starts what they have left."""
    flood = [stored.create(queued_at=ago(seconds=60 - number)) for number in range(6)]
    single = other.create()

    for run_id in flood[:3]:  # the first one finds out that the queue is long
        execution.execute_in_turn(process, run_id, by_message=True)

    assert [True] == ended(other, single)
    assert 2 == sum(ended(stored, *flood))
    for run_id in [*flood[3:], single]:
        execution.execute_in_turn(process, run_id, by_message=True)
    assert all(ended(stored, *flood))


def test_turns_are_taken_until_a_message_names_a_run_that_has_not_waited(
    stored: StoredRuns, other: StoredRuns, process: WorkerProcess
) -> None:
    """However long that takes, as runs may. A fresh run that has its turn ends nothing."""
    waited, named = (
        stored.create(queued_at=ago(seconds=60)),
        stored.create(queued_at=ago(seconds=59)),
    )
    execution.execute_in_turn(process, waited, by_message=True)
    assert process.queue_is_long

    single = other.create()
    process.whose_turn = lambda _: single  # type: ignore[method-assign, assignment]  # its turn
    execution.execute_in_turn(process, named, by_message=True)
    assert [True] == ended(other, single)
    assert process.queue_is_long

    fresh = stored.create()
    process.whose_turn = lambda _: fresh  # type: ignore[method-assign, assignment]  # its turn
    execution.execute_in_turn(process, fresh, by_message=True)
    assert [True, False] == ended(stored, fresh, named)
    assert not process.queue_is_long
    stored.cancel(named)


def test_without_a_queue_a_message_starts_its_run(
    stored: StoredRuns, other: StoredRuns, process: WorkerProcess
) -> None:
    """Another org has a run that was queued before; nothing is asked about turns."""
    waiting, named = other.create(), stored.create()

    execution.execute_in_turn(process, named, by_message=True)

    assert not process.queue_is_long
    assert [True] == ended(stored, named)
    assert [False] == ended(other, waiting)
    other.cancel(waiting)


def test_a_turn_that_another_process_has_taken_leaves_the_message_its_run(
    stored: StoredRuns,
    other: StoredRuns,
    process: WorkerProcess,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No message is lost: it starts a run as long as there is one."""
    old = stored.create(queued_at=ago(seconds=60))
    execution.execute_in_turn(process, old, by_message=True)
    named, taken = stored.create(), other.create()
    assert other.claim(taken) is not None
    monkeypatch.setattr(process, "whose_turn", lambda _: taken)

    execution.execute_in_turn(process, named, by_message=True)

    assert [True, True] == ended(stored, old, named)
