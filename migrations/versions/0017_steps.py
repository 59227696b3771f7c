"""The number of finished model turns of a run.

Runs of earlier releases keep null for unknown: to count them now would read every stored event.

Revision ID: 0017
Revises: 0016
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    # In this order, so that the default is that of new rows alone.
    op.add_column("runs", sa.Column("steps", sa.Integer))
    op.alter_column("runs", "steps", server_default=sa.text("0"))
