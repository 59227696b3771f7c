"""A row that names this installation in Redis.

Revision ID: 0013
Revises: 0012
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.create_table(
        "installation",
        sa.Column("is_one", sa.Boolean, primary_key=True, server_default=sa.true()),
        sa.Column("epoch", sa.Uuid, nullable=False, server_default=sa.func.gen_random_uuid()),
        sa.CheckConstraint("is_one", name="ck_installation_is_one"),
    )
    op.execute("INSERT INTO installation DEFAULT VALUES")
