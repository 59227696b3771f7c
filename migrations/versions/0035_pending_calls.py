"""Tool calls whose results come from outside the workers.

Revision ID: 0035
Revises: 0034
"""

from alembic import op

revision = "0035"
down_revision = "0034"


def upgrade() -> None:
    op.execute(
        "ALTER TABLE tool_calls ADD COLUMN result_from TEXT, ADD COLUMN accepted_at TIMESTAMPTZ"
    )
