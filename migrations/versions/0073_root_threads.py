"""The threads of sub-runs have the thread at the top, for when the retention has deleted runs.

Revision ID: 0073
Revises: 0072
"""

import sqlalchemy as sa
from alembic import op

revision = "0073"
down_revision = "0072"
branch_labels = None
depends_on = None

BATCH = 1_000
_INDEX = "ix_threads_root_thread_id"

# A trigger: processes of the release before start sub-runs, too, and do not know the column. A row
# that comes from another cell has it already: its runs come later.
_COLUMN = """
ALTER TABLE threads ADD COLUMN IF NOT EXISTS root_thread_id uuid;

CREATE OR REPLACE FUNCTION threads_have_their_root() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.root_thread_id := (
        SELECT coalesce(t.root_thread_id, t.id) FROM runs r JOIN threads t ON t.id = r.thread_id
        WHERE r.id = NEW.parent_run_id
    );
    RETURN NEW;
END $$;

DROP TRIGGER IF EXISTS threads_have_their_root ON threads;
CREATE TRIGGER threads_have_their_root BEFORE INSERT OR UPDATE OF parent_run_id ON threads
    FOR EACH ROW WHEN (NEW.parent_run_id IS NOT NULL AND NEW.root_thread_id IS NULL)
    EXECUTE FUNCTION threads_have_their_root();
"""

# From each thread up, and not by the root of the one above: that may be in the same batch. Where a
# run in between is gone, the thread below it is the top.
_FILL = sa.text(
    """
    WITH RECURSIVE batch AS (
        SELECT id, parent_run_id FROM threads
        WHERE id > :after AND parent_run_id IS NOT NULL ORDER BY id LIMIT :batch
    ), up AS (
        SELECT id, parent_run_id, NULL::uuid AS root_id, 0 AS levels FROM batch
        UNION ALL
        SELECT up.id, t.parent_run_id, t.id, levels + 1
        FROM up JOIN runs r ON r.id = up.parent_run_id JOIN threads t ON t.id = r.thread_id
    ), filled AS (
        UPDATE threads t SET root_thread_id = top.root_id
        FROM (SELECT DISTINCT ON (id) id, root_id FROM up ORDER BY id, levels DESC) AS top
        WHERE t.id = top.id AND t.root_thread_id IS NULL AND top.root_id IS NOT NULL
    )
    SELECT id FROM batch ORDER BY id DESC LIMIT 1
    """
)


def upgrade() -> None:
    op.execute(_COLUMN)
    # Beside running services. An attempt that broke off has left an invalid index.
    with op.get_context().autocommit_block():
        after = "00000000-0000-0000-0000-000000000000"
        while after is not None:
            after = op.get_bind().scalar(_FILL, {"after": after, "batch": BATCH})
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {_INDEX}")
        op.execute(
            f"CREATE INDEX CONCURRENTLY {_INDEX} ON threads (root_thread_id)"
            " WHERE root_thread_id IS NOT NULL"
        )
