"""The usage of an end user is read from an index.

Revision ID: 0030
Revises: 0029
"""

import sqlalchemy as sa
from alembic import op

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None

_NAME = "ix_run_usage_org_id_end_user_id_ended_at"


def upgrade() -> None:
    # Runs end while it is built. A build that was interrupted leaves an invalid index behind.
    with op.get_context().autocommit_block():
        op.drop_index(_NAME, "run_usage", if_exists=True, postgresql_concurrently=True)
        op.create_index(
            _NAME,
            "run_usage",
            ["org_id", "end_user_id", "ended_at"],
            postgresql_where=sa.text("end_user_id IS NOT NULL"),
            postgresql_concurrently=True,
        )
