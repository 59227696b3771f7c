"""Results of client tools that a page has sent with a reply, before the run makes their calls.

Revision ID: 0085
Revises: 0084
"""

from alembic import op

revision = "0085"
down_revision = "0084"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE inputs ADD COLUMN results JSONB")
