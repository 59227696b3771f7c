"""Data of the client on threads and runs, and on the usage of runs, for reports.

Revision ID: 0020
Revises: 0019
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    for table in ("threads", "runs", "run_usage"):
        op.add_column(table, sa.Column("end_user_id", sa.Text))
        op.add_column(
            table, sa.Column("metadata", JSONB, nullable=False, server_default=sa.text("'{}'"))
        )
    op.add_column("threads", sa.Column("external_id", sa.Text))
