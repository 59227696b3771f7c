"""Messages that have steered a run keep the end user for whom they were sent.

Revision ID: 0092
Revises: 0091
"""

from alembic import op

revision = "0092"
down_revision = "0091"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Beside running services, those of the release before leave it null. An attempt that broke off
    # has left the column, and maybe an invalid index.
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE messages ADD COLUMN IF NOT EXISTS end_user_id text")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_messages_org_id_end_user_id")
        op.execute(
            "CREATE INDEX CONCURRENTLY ix_messages_org_id_end_user_id"
            " ON messages (org_id, end_user_id) WHERE end_user_id IS NOT NULL"
        )
