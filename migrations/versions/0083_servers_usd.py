"""The part of a run's cost so far that is of routes of the server, in its reservation.

Revision ID: 0083
Revises: 0082
"""

import sqlalchemy as sa
from alembic import op

revision = "0083"
down_revision = "0082"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Processes of the release before write none, or leave what was written: never more than it is.
    op.add_column(
        "holds",
        sa.Column("servers_usd", sa.Numeric(18, 8), nullable=False, server_default=sa.text("0")),
    )
