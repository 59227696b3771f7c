"""The threads of sub-runs follow the one at the top, and not only from one level to the next.

Revision ID: 0074
Revises: 0073
"""

from alembic import op

revision = "0074"
down_revision = "0073"
branch_labels = None
depends_on = None

# As in 0070, and by the root: the runs between may be gone. A thread below has its own update, by
# which the sub-runs are found that were being started there. An `external_id` that the one who sees
# the thread has given to another one is lost.
_FUNCTION = """
CREATE OR REPLACE FUNCTION threads_take_their_runs_along() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    is_gone CONSTANT boolean := NEW.deleted_at IS NOT NULL;
BEGIN
    UPDATE runs SET visible_to = NEW.visible_to WHERE thread_id = NEW.id;
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
        SELECT b.id FROM runs r JOIN threads b ON b.parent_run_id = r.id WHERE r.thread_id = NEW.id
    );
    RETURN NULL;
END $$;
"""


def upgrade() -> None:
    op.execute(_FUNCTION)
