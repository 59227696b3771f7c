"""Orgs that are copied to another installation.

Revision ID: 0066
Revises: 0065
"""

from alembic import op

revision = "0066"
down_revision = "0065"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Beside running services, and by itself: see 0064.
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE orgs ADD COLUMN IF NOT EXISTS moved_to uuid")
