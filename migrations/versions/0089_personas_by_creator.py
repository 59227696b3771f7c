"""The index on the creators of personas goes: no statement looks for them, no user is deleted.

Revision ID: 0089
Revises: 0088
"""

from alembic import op

revision = "0089"
down_revision = "0088"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Beside running services.
    with op.get_context().autocommit_block():
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_personas_created_by_user_id")
