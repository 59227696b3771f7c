"""The visibility of a run in its row; events outlive their run until they are collected.

Revision ID: 0003
Revises: 0002
"""

from alembic import op

revision = "0003"
down_revision = "0002"

# Triggers, and not the code alone: while a deploy is under way, processes that do not know the
# column still create runs, delete them and change who sees a thread. A run whose row says nothing
# would be hidden from its own creator; one whose row is old would be shown to others.
_STATEMENTS = """
ALTER TABLE threads ADD COLUMN visible_to uuid GENERATED ALWAYS AS (
    CASE WHEN deleted_at IS NULL THEN CASE WHEN is_private THEN created_by_user_id ELSE org_id END END
) STORED;

ALTER TABLE runs ADD COLUMN visible_to uuid;

CREATE FUNCTION runs_are_visible_as_their_thread() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.visible_to := (SELECT visible_to FROM threads WHERE id = NEW.thread_id);
    RETURN NEW;
END $$;

CREATE TRIGGER runs_are_visible_as_their_thread BEFORE INSERT ON runs
    FOR EACH ROW WHEN (NEW.visible_to IS NULL)
    EXECUTE FUNCTION runs_are_visible_as_their_thread();

CREATE FUNCTION threads_take_their_runs_along() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE runs SET visible_to = NEW.visible_to WHERE thread_id = NEW.id;
    RETURN NULL;
END $$;

CREATE TRIGGER threads_take_their_runs_along AFTER UPDATE ON threads
    FOR EACH ROW WHEN (OLD.visible_to IS DISTINCT FROM NEW.visible_to)
    EXECUTE FUNCTION threads_take_their_runs_along();

CREATE TABLE forgotten_runs (
    run_id uuid NOT NULL CONSTRAINT pk_forgotten_runs PRIMARY KEY,
    forgotten_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX ix_forgotten_runs_forgotten_at ON forgotten_runs (forgotten_at);

CREATE FUNCTION runs_leave_their_events() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO forgotten_runs (run_id) SELECT id FROM gone ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE TRIGGER runs_leave_their_events AFTER DELETE ON runs
    REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION runs_leave_their_events();

ALTER TABLE run_events DROP CONSTRAINT fk_run_events_run_id;
"""


def upgrade() -> None:
    op.execute(_STATEMENTS)
