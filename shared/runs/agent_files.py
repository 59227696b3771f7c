"""The files that an agent worker may read: those that the messages of its run name."""

from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, select

from arkloop.shared.errors import FileMissing, OutdatedFence, RunNotFound
from arkloop.shared.files import files
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.runs import runs
from arkloop.shared.threads import history_messages


def find(
    sql: Connection, org_id: UUID, agent: str, run_id: UUID, fence: int, file_id: UUID
) -> Row[Any]:
    """Find a file that the messages of a run name, for the agent worker that executes it.

    Raises:
        RunNotFound: the agent has no such run.
        OutdatedFence: the run is not this claim's any more.
        FileMissing: no message before the run names it, or it was deleted.
    """
    run = sql.execute(
        select(runs.c.state, runs.c.fence, runs.c.thread_id, runs.c.position).where(
            runs.c.id == run_id, runs.c.org_id == org_id, runs.c.agent == agent
        )
    ).one_or_none()
    if run is None:
        raise RunNotFound()
    if run.fence != fence or run.state != RunState.EXECUTING:
        raise OutdatedFence(run_state=run.state)
    if history_messages.name_file(sql, run.thread_id, run.position, file_id):
        for row in files.of_ids(sql, org_id, [file_id]):
            return row
    raise FileMissing()
