"""The time of the last tidying up, beside that of the last sweep: one process does it for all.

Revision ID: 0091
Revises: 0090
"""

from alembic import op

revision = "0091"
down_revision = "0090"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Processes of the release before tidy up by clocks of their own, and leave it null.
    op.execute("ALTER TABLE sweep_turn ADD COLUMN tidied_at timestamptz")
