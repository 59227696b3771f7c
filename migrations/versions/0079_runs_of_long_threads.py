"""A thread of very many runs is deleted and made public without a write of all of them at once.

Revision ID: 0079
Revises: 0078
"""

from alembic import op

revision = "0079"
down_revision = "0078"
branch_labels = None
depends_on = None

_INDEX = "ix_threads_runs_due_at"

_COLUMNS = (
    "ALTER TABLE threads ADD COLUMN IF NOT EXISTS runs_due_at timestamptz,"
    " ADD COLUMN IF NOT EXISTS runs_due_upto bigint,"
    " ADD COLUMN IF NOT EXISTS runs_hidden_from bigint"
)

# As in 0077, but for threads of more than 200 runs. There, when the thread is deleted or becomes
# public, the newest runs and those that have not ended are written here, and the rest is left to
# `shared/runs/visible_runs.py`: by then the thread itself says that it is gone, or public. A private
# thread has all of its runs written here, since nobody else may see one of them afterwards; those
# are few where that module has written the others before. A process of the release before, which
# does not do so, writes them all, as it did.
#
# Where a public thread with hidden runs is deleted, `runs_due_upto` stays, since the metadata of
# their usage is missing in reports.
#
# Rows that are right already are not written. None of these is active: nothing but this function
# writes those. So that lock remains by which a sub-run that is being started is waited for.
#
# All that is below a thread at the top has that as its root; what is below another one is found by
# its runs, which are read for that.
_FUNCTION = """
CREATE OR REPLACE FUNCTION threads_take_their_runs_along() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    is_gone CONSTANT boolean := NEW.deleted_at IS NOT NULL;
    -- The position of the newest run that is left; null: none is.
    left_upto CONSTANT bigint := CASE WHEN is_gone OR NOT NEW.is_private THEN (
        SELECT position FROM runs WHERE thread_id = NEW.id
        ORDER BY position DESC OFFSET 200 LIMIT 1
    ) END;
    due_upto CONSTANT bigint := CASE WHEN is_gone OR NOT NEW.is_private
        THEN greatest(left_upto, NEW.runs_due_upto) END;
BEGIN
    UPDATE runs SET visible_to = NEW.visible_to
    WHERE thread_id = NEW.id AND position > coalesce(left_upto, -1)
        AND visible_to IS DISTINCT FROM NEW.visible_to;
    IF left_upto IS NOT NULL THEN
        UPDATE runs SET visible_to = NEW.visible_to
        WHERE thread_id = NEW.id AND state IN ('queued', 'executing', 'waiting', 'suspended')
            AND visible_to IS DISTINCT FROM NEW.visible_to;
        UPDATE runs SET visible_to = NEW.visible_to
        WHERE thread_id = NEW.id AND position >= 2251799813685248 AND ended_at IS NULL
            AND visible_to IS DISTINCT FROM NEW.visible_to;
    END IF;
    IF OLD.is_private <> NEW.is_private THEN
        UPDATE run_usage u SET metadata = r.metadata FROM runs r
        WHERE r.thread_id = NEW.id AND r.position > coalesce(left_upto, -1)
            AND u.run_id = r.id AND r.metadata <> '{}'
            AND u.metadata <> CASE WHEN NEW.is_private THEN '{}' ELSE r.metadata END;
    END IF;
    IF due_upto IS NOT NULL OR NEW.runs_due_at IS NOT NULL THEN
        UPDATE threads SET runs_due_upto = due_upto, runs_hidden_from = NULL,
            runs_due_at = CASE WHEN due_upto IS NOT NULL THEN now() END
        WHERE id = NEW.id;
    END IF;
    UPDATE threads t SET deleted_at = NEW.deleted_at,
        is_private = CASE WHEN is_gone THEN t.is_private ELSE NEW.is_private END,
        created_by_user_id = CASE WHEN NEW.is_private AND NOT is_gone
            THEN NEW.created_by_user_id ELSE t.created_by_user_id END,
        external_id = CASE WHEN NOT EXISTS (
            SELECT FROM threads o WHERE o.visible_to = NEW.visible_to
                AND o.external_id = t.external_id AND o.id <> t.id
        ) THEN t.external_id END
    WHERE t.deleted_at IS NULL AND t.visible_to IS DISTINCT FROM NEW.visible_to
        AND (is_gone OR NOT t.is_private OR t.created_by_user_id = NEW.created_by_user_id)
        AND t.id IN (
        SELECT b.id FROM threads b WHERE b.root_thread_id = NEW.id
        UNION ALL
        SELECT b.id FROM runs r JOIN threads b ON b.parent_run_id = r.id
        WHERE r.thread_id = NEW.id AND NEW.parent_run_id IS NOT NULL
    );
    RETURN NULL;
END $$;
"""


def upgrade() -> None:
    op.execute(_COLUMNS)
    # Beside running services, and before the function marks a thread. An attempt that broke off has
    # left an invalid index.
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {_INDEX}")
        op.execute(
            f"CREATE INDEX CONCURRENTLY {_INDEX} ON threads (runs_due_at)"
            " WHERE runs_due_at IS NOT NULL"
        )
    op.execute(_FUNCTION)
