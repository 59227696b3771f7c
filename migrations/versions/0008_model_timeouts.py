"""The time that a model of an org may be silent.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_COLUMNS = ("first_byte_seconds", "idle_seconds")


def upgrade() -> None:
    for name in _COLUMNS:
        op.add_column("llm_models", sa.Column(name, sa.Integer))
