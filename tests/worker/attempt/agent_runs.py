"""Runs of custom agents, and the worker process that executes them."""

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from arkloop.shared import plugins
from arkloop.shared.catalog import model_routes, published_personas
from arkloop.shared.config import Settings
from arkloop.shared.events.event_log import data_of
from arkloop.shared.ids import new_id
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.runs import tool_calls
from arkloop.shared.threads import threads
from arkloop.shared.threads.content import Content
from arkloop.worker.attempt import execution
from arkloop.worker.process.process import WorkerProcess
from tests.stored_runs import StoredRuns
from tests.waiting import eventually

PACKAGES = Path(__file__).parents[2] / "agents_package"

LOST = {"state": RunState.QUEUED, "resume_reason": "worker_lost"}


@pytest.fixture(scope="module")
def process(settings: Settings) -> Iterator[WorkerProcess]:
    """A worker process next to which the agents of the tests are installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PACKAGES))
        patch.setattr(execution, "LINGER_SECONDS", 0.0)  # nobody answers meanwhile
        plugins.use(())
        patient = replace(settings, sweep_seconds=3600, heartbeat_seconds=0.2)
        made = WorkerProcess(patient, model_routes.load(patient))
        assert made.lease.wait_until_valid(60)
        yield made
        made.close()
    plugins.use(())


def created(
    stored: StoredRuns,
    *steps: dict[str, Any],
    agent: str = "script",
    file_ids: Sequence[str] = (),
    **fields: Any,
) -> UUID:
    """Create a run whose agent plays these steps; `fields` are those of its persona.

    The second message of its thread has the files, if there are any.
    """
    key = f"p{new_id().hex}"
    with stored.connections.transaction() as tx:
        published_personas.publish(tx, stored.actor, key, "1", {"agent": agent, **fields})
    thread_id = stored.thread()
    with stored.connections.transaction() as tx:
        threads.add_message(tx, stored.actor, thread_id, content=json.dumps(steps))
        if file_ids:
            about = Content.of([{"type": "file", "file_id": file_id} for file_id in file_ids])
            threads.add_message(tx, stored.actor, thread_id, content=about)
    return stored.create(thread_id, persona_id=f"{key}@1")


def data(stored: StoredRuns, run_id: UUID, type_: str) -> list[dict[str, Any]]:
    return [data_of(e.payload) for e in stored.events(run_id) if e.type == type_]


def stopped(
    process: WorkerProcess,
    stored: StoredRuns,
    run_id: UUID,
    reason: BaseException,
    after: tuple[str, int],
    begun: int = 0,
) -> None:
    """Execute the run until it has this number of events of a type, and stop it then.

    An event says that a call is made before the call begins: `begun` is the number of calls for
    which this is awaited, too.
    """
    attempt = threading.Thread(target=execution.execute, args=(process, run_id))
    attempt.start()
    eventually(lambda: stored.types(run_id).count(after[0]) >= after[1])
    eventually(lambda: _begun_calls(stored, run_id) >= begun)
    process.active_runs()[run_id].set(reason)
    attempt.join(20)
    assert not attempt.is_alive()


def _begun_calls(stored: StoredRuns, run_id: UUID) -> int:
    with stored.connections.reading() as sql:
        rows = sql.execute(select(tool_calls.c.tool_call_id).where(tool_calls.c.run_id == run_id))
        return len(rows.all())


def follow_up(stored: StoredRuns, process: WorkerProcess, run_id: UUID) -> UUID:
    """Execute another run in the thread, by the built-in loop."""
    thread_id = stored.row(run_id)["thread_id"]
    with stored.connections.transaction() as tx:
        threads.add_message(tx, stored.actor, thread_id, content="And now?")
    later = stored.create(thread_id)
    execution.execute(process, later)
    return later
