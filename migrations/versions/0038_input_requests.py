"""The input that tool calls request from people.

Revision ID: 0038
Revises: 0037
"""

from alembic import op

revision = "0038"
down_revision = "0037"


def upgrade() -> None:
    op.execute("ALTER TABLE tool_calls ADD COLUMN input_request TEXT")
