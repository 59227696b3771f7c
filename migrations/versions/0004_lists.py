"""Lists are read from indexes by who sees the rows; tables are laid out for many rows.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

BATCH = 5_000
# A table of millions of rows is vacuumed when a few of a hundred are new or gone, not a fifth:
# lists are read from indexes alone where the visibility map says so, and what retention has
# deleted is used again.
_STORAGE = {
    "threads": {"vacuum": 0.05, "vacuum_insert": 0.05, "analyze": 0.05},
    "runs": {"vacuum": 0.05, "vacuum_insert": 0.05, "analyze": 0.05},
    "run_events": {"vacuum": 0.02, "vacuum_insert": 0.02, "analyze": 0.05},
}
# A thread that is made private meanwhile waits for its batch, or the batch for it.
_FILL = sa.text(
    """
    WITH batch AS (
        SELECT runs.id, threads.visible_to
        FROM runs JOIN threads ON threads.id = runs.thread_id
        WHERE runs.id > :after ORDER BY runs.id LIMIT :batch FOR SHARE OF threads
    ), filled AS (
        UPDATE runs SET visible_to = batch.visible_to FROM batch
        WHERE runs.id = batch.id AND runs.visible_to IS DISTINCT FROM batch.visible_to
    )
    SELECT id FROM batch ORDER BY id DESC LIMIT 1
    """
)


_NEW = {
    "ix_runs_visible_to_created_at_id": ("runs", ["visible_to", "created_at", "id"]),
    "ix_runs_visible_to_state_created_at_id": (
        "runs",
        ["visible_to", "state", "created_at", "id"],
    ),
    "ix_threads_visible_to_created_at_id": ("threads", ["visible_to", "created_at", "id"]),
}
_OLD = {
    "ix_runs_org_id_created_at_id": ("runs", ["org_id", "created_at", "id"]),
    "ix_runs_org_id_state_created_at_id": ("runs", ["org_id", "state", "created_at", "id"]),
    "ix_threads_org_id_created_at_id": ("threads", ["org_id", "created_at", "id"]),
}


def upgrade() -> None:
    # Batch by batch, index by index, each its own transaction: active runs are locked for a
    # moment only. What changes meanwhile is kept right by the triggers.
    with op.get_context().autocommit_block():
        after = "00000000-0000-0000-0000-000000000000"
        while after is not None:
            after = op.get_bind().scalar(_FILL, {"after": after, "batch": BATCH})
        for name, (table, columns) in _NEW.items():
            op.create_index(name, table, columns, if_not_exists=True)
    for name, (table, _) in _OLD.items():
        op.drop_index(name, table_name=table)
    for table, factors in _STORAGE.items():
        settings = (f"autovacuum_{name}_scale_factor = {part}" for name, part in factors.items())
        op.execute(f"ALTER TABLE {table} SET ({', '.join(settings)})")
