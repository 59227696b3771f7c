"""The part of a reservation that is kept for the run's last call.

Revision ID: 0031
Revises: 0030
"""

import sqlalchemy as sa
from alembic import op

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "holds",
        sa.Column("kept_usd", sa.Numeric(18, 8), nullable=False, server_default=sa.text("0")),
    )
