"""The note that a run of an agent worker lands at the end of its time.

Revision ID: 0052
Revises: 0051
"""

import sqlalchemy as sa
from alembic import op

revision = "0052"
down_revision = "0051"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "agent_runs", sa.Column("lands", sa.Boolean, nullable=False, server_default=sa.false())
    )
