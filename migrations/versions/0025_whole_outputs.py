"""The output of a tool call that is too long for its event.

Revision ID: 0025
Revises: 0024
"""

from alembic import op

revision = "0025"
down_revision = "0024"


def upgrade() -> None:
    op.execute("ALTER TABLE tool_calls ADD COLUMN whole_output TEXT")
