"""The threads of sub-runs are private, public and deleted with the thread of their parent.

Scheduled runs of threads that were deleted are to be cancelled.

Revision ID: 0070
Revises: 0069
"""

from alembic import op

revision = "0070"
down_revision = "0069"
branch_labels = None
depends_on = None

# A trigger, as before: processes of the release before change threads, too. The threads of sub-runs
# are looked for behind the update of the runs, which has locked the rows of their parents: with a
# sub-run that was being started it waits for that, and each statement here sees what is committed
# when it begins. One that is started afterwards takes after the row of its parent.
#
# Only the creator of a thread sees it when it is private. In a public thread another member may have
# created the run, and with it the threads below; those that they have made private stay theirs. What
# is deleted keeps its creator and whether it is private: by these the export and the erasure of a
# person find it.
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
    FROM runs r WHERE r.thread_id = NEW.id AND t.parent_run_id = r.id AND t.deleted_at IS NULL
        AND (is_gone OR NOT t.is_private OR t.created_by_user_id = NEW.created_by_user_id);
    RETURN NULL;
END $$;
"""

# What the function above does, for threads that were made private or deleted before it was there:
# it does the rest for the levels below. It is committed first, so that no thread is changed by the
# former one behind these statements. Those below a private thread become private first, also where
# that is deleted by now: they would have been private when it was deleted.
_MAKE_PRIVATE = """
UPDATE threads t SET is_private = true, created_by_user_id = above.created_by_user_id,
    external_id = CASE WHEN NOT EXISTS (
        SELECT FROM threads o WHERE o.visible_to = above.created_by_user_id
            AND o.external_id = t.external_id AND o.id <> t.id
    ) THEN t.external_id END
FROM runs r JOIN threads above ON above.id = r.thread_id
WHERE t.parent_run_id = r.id AND t.deleted_at IS NULL AND above.is_private AND NOT t.is_private
"""

_DELETE = """
UPDATE threads t SET deleted_at = above.deleted_at
FROM runs r JOIN threads above ON above.id = r.thread_id
WHERE t.parent_run_id = r.id AND t.deleted_at IS NULL AND above.deleted_at IS NOT NULL
"""

# The sweep ends them. Their time may be a year ahead, and until then they counted for limits.
_CANCEL = """
UPDATE runs SET cancel_requested_at = now(), cancel_requested_by = created_by_user_id
WHERE visible_to IS NULL AND state = 'scheduled' AND cancel_requested_at IS NULL
    AND not_before IS NOT NULL AND position >= 2251799813685248 AND ended_at IS NULL
"""


def upgrade() -> None:
    op.execute(_FUNCTION)
    with op.get_context().autocommit_block():
        op.execute(_MAKE_PRIVATE)
        op.execute(_DELETE)
        op.execute(_CANCEL)
