"""Runs as the tests of attempts script them, and what they have cost."""

import json
import threading
from typing import Any
from uuid import UUID

from sqlalchemy import select

from arkloop.shared.events import types
from arkloop.shared.events.event_log import data_of, text_of
from arkloop.shared.storage.tables.billing import run_usage
from arkloop.shared.threads import threads
from arkloop.worker.attempt import execution
from arkloop.worker.process.process import WorkerProcess
from tests.stored_runs import StoredRuns
from tests.waiting import eventually


def scripted(stored: StoredRuns, *steps: dict[str, Any], **columns: Any) -> UUID:
    """Create a run that plays these steps."""
    thread_id = stored.thread()
    with stored.connections.transaction() as tx:
        content = json.dumps({"script": steps}, separators=(",", ":"))
        threads.add_message(tx, stored.actor, thread_id, content=content)
    return stored.create(thread_id, **columns)


def said_by(stored: StoredRuns, run_id: UUID) -> str:
    return text_of([e for e in stored.events(run_id) if e.type == types.MessageDelta.type])


def stopped_in_the_middle(
    process: WorkerProcess,
    stored: StoredRuns,
    run_id: UUID,
    reason: BaseException,
    said: str = "",
) -> None:
    """Execute it until it has said something, or this, and then for no longer."""
    attempt = threading.Thread(target=execution.execute, args=(process, run_id))
    attempt.start()
    eventually(lambda: said in said_by(stored, run_id) != "")
    process.active_runs()[run_id].set(reason)
    attempt.join(60)


def costs(stored: StoredRuns, run_id: UUID) -> list[Any]:
    return [
        data_of(event.payload)["usage"]["output_tokens"]
        for event in stored.events(run_id)
        if event.type == types.RunCost.type
    ]


def output_by_route(stored: StoredRuns, run_id: UUID) -> dict[str, int]:
    with stored.connections.reading() as sql:
        used = sql.execute(select(run_usage).where(run_usage.c.run_id == run_id)).all()
    return {row.route_id: row.output_tokens for row in used}
