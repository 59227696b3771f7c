"""Usage reports have nothing of the metadata of runs in private threads; an org can come back.

Revision ID: 0077
Revises: 0076
"""

import sqlalchemy as sa
from alembic import op

revision = "0077"
down_revision = "0076"
branch_labels = None
depends_on = None

BATCH = 5_000

# A trigger, and not the code alone: processes of the release before end runs and change their
# metadata, too. Reports are read by all members, while a private thread is seen by its creator
# alone. It looks at the thread, as it is committed by then, and not at `runs.visible_to`: a deleted
# thread hides its runs as well, but those of a shared one stay in reports as they were. The usage of
# a run without metadata costs the check of a condition.
_USAGE = """
CREATE OR REPLACE FUNCTION usage_of_private_runs_has_no_metadata() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM runs r JOIN threads t ON t.id = r.thread_id
        WHERE r.id = NEW.run_id AND t.is_private
    ) THEN
        NEW.metadata := '{}';
    END IF;
    RETURN NEW;
END $$;

DROP TRIGGER IF EXISTS usage_of_private_runs_has_no_metadata ON run_usage;
CREATE TRIGGER usage_of_private_runs_has_no_metadata
    BEFORE INSERT OR UPDATE OF metadata ON run_usage
    FOR EACH ROW WHEN (NEW.metadata <> '{}')
    EXECUTE FUNCTION usage_of_private_runs_has_no_metadata();
"""

# As in 0074, and with the usage of the thread's runs that have ended. It comes behind the update of
# the runs: a run that is ending is waited for there, and its usage is seen afterwards. The trigger
# above decides what is stored.
_THREADS = """
CREATE OR REPLACE FUNCTION threads_take_their_runs_along() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    is_gone CONSTANT boolean := NEW.deleted_at IS NOT NULL;
BEGIN
    UPDATE runs SET visible_to = NEW.visible_to WHERE thread_id = NEW.id;
    IF OLD.is_private <> NEW.is_private THEN
        UPDATE run_usage u SET metadata = r.metadata FROM runs r
        WHERE r.thread_id = NEW.id AND u.run_id = r.id AND r.metadata <> '{}';
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
        SELECT b.id FROM runs r JOIN threads b ON b.parent_run_id = r.id WHERE r.thread_id = NEW.id
    );
    RETURN NULL;
END $$;
"""

# Of a cell that an org comes back to, `arkloop orgs copy` alone makes these settings, for its own
# transaction: the head of the audit log moves to that of the other cell, and an entry of the ledger
# loses its run, which was charged in both cells.
_RETURNS = """
CREATE OR REPLACE FUNCTION check_audit_head() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.org_id <> OLD.org_id OR NEW.seq <> OLD.seq + 1
        AND coalesce(current_setting('arkloop.audit_prune', true), '') <> 'on'
    THEN
        RAISE EXCEPTION 'a head of the audit log moves by one entry'
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION ledger_entries_stay() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND current_setting('arkloop.ledger_return', true) = 'on' THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'ledger_entries is append-only';
END $$;
"""

# By the run, of which a batch may have only a part of the rows.
_CLEAR = sa.text(
    """
    WITH batch AS (
        SELECT run_id, metadata FROM run_usage
        WHERE run_id > :after ORDER BY run_id, route_id LIMIT :batch
    ), cleared AS (
        UPDATE run_usage u SET metadata = '{}'
        FROM batch b JOIN runs r ON r.id = b.run_id JOIN threads t ON t.id = r.thread_id
        WHERE u.run_id = b.run_id AND b.metadata <> '{}' AND t.is_private
    )
    SELECT run_id FROM batch ORDER BY run_id DESC LIMIT 1
    """
)


def upgrade() -> None:
    op.execute(_USAGE)
    op.execute(_THREADS)
    op.execute(_RETURNS)
    # Committed first: nothing is stored behind these statements.
    with op.get_context().autocommit_block():
        after = "00000000-0000-0000-0000-000000000000"
        while after is not None:
            after = op.get_bind().scalar(_CLEAR, {"after": after, "batch": BATCH})
