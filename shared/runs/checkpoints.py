"""The checkpoints of custom agents: the last one of each run, written under its fence."""

from uuid import UUID

from sqlalchemy import Connection, func, literal, select
from sqlalchemy.dialects.postgresql import insert as upsert

from arkloop.shared.errors import LeaseLost
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.runs import agent_checkpoints, runs


def store(tx: Transaction, run_id: UUID, fence: int, data: str) -> None:
    """Replace the run's checkpoint by this JSON.

    Raises:
        LeaseLost: the run is not executed under this fence any more.
    """
    held = (runs.c.id == run_id) & (runs.c.fence == fence) & (runs.c.state == RunState.EXECUTING)
    written = tx.sql.execute(
        upsert(agent_checkpoints)
        .from_select(
            ["run_id", "fence", "data"],
            select(runs.c.id, runs.c.fence, literal(data)).where(held).with_for_update(read=True),
        )
        .on_conflict_do_update(
            index_elements=["run_id"],
            set_={"fence": fence, "data": data, "stored_at": func.now()},
        )
    )
    if not written.rowcount:
        raise LeaseLost()


def load(sql: Connection, run_id: UUID) -> str | None:
    """Return the JSON of the run's last checkpoint; None without one."""
    return sql.scalar(select(agent_checkpoints.c.data).where(agent_checkpoints.c.run_id == run_id))
