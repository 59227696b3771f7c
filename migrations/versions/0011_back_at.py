"""Workers say when they were heard again after a silence.

Revision ID: 0011
Revises: 0010
"""

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.execute("ALTER TABLE workers ADD COLUMN back_at timestamptz")
