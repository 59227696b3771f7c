"""Messages that are offered to an active run, and those that are part of one.

Revision ID: 0044
Revises: 0043
"""

from alembic import op

revision = "0044"
down_revision = "0043"
branch_labels = None
depends_on = None

_TABLE = """
CREATE TABLE offered_messages (
    run_id uuid NOT NULL,
    active_run_id uuid NOT NULL,
    message_id uuid NOT NULL,
    org_id uuid NOT NULL,
    thread_id uuid NOT NULL,
    created_by_user_id uuid NOT NULL,
    api_key_id uuid,
    trace_id text NOT NULL,
    persona_id text NOT NULL,
    route_id text NOT NULL,
    model text NOT NULL,
    agent text,
    options jsonb,
    end_user_id text,
    metadata jsonb NOT NULL,
    position bigint NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_offered_messages PRIMARY KEY (run_id),
    CONSTRAINT fk_offered_messages_active_run_id FOREIGN KEY (active_run_id) REFERENCES runs (id)
        ON DELETE CASCADE,
    CONSTRAINT fk_offered_messages_message_id FOREIGN KEY (message_id) REFERENCES messages (id)
        ON DELETE CASCADE
);

CREATE INDEX ix_offered_messages_active_run_id ON offered_messages (active_run_id);
CREATE INDEX ix_offered_messages_message_id ON offered_messages (message_id);
CREATE INDEX ix_offered_messages_thread_id ON offered_messages (thread_id);
"""


def upgrade() -> None:
    # Beside running services. An attempt that broke off has left columns, and maybe an invalid
    # index.
    with op.get_context().autocommit_block():
        op.execute(
            "ALTER TABLE runs ADD COLUMN IF NOT EXISTS"
            " has_offered boolean NOT NULL DEFAULT false"
        )
        op.execute("ALTER TABLE messages ADD COLUMN IF NOT EXISTS steered_into uuid")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_messages_steered_into")
        op.execute(
            "CREATE INDEX CONCURRENTLY ix_messages_steered_into ON messages (steered_into)"
            " WHERE steered_into IS NOT NULL"
        )
        # In two steps: only the second one reads the table, and lets others write meanwhile.
        op.execute("ALTER TABLE messages DROP CONSTRAINT IF EXISTS fk_messages_steered_into")
        op.execute(
            "ALTER TABLE messages ADD CONSTRAINT fk_messages_steered_into"
            " FOREIGN KEY (steered_into) REFERENCES runs (id) ON DELETE SET NULL NOT VALID"
        )
        op.execute("ALTER TABLE messages VALIDATE CONSTRAINT fk_messages_steered_into")
    op.execute(_TABLE)
