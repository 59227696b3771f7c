"""Members whom an identity provider of the org knew are known to be the people of their address.

Revision ID: 0078
Revises: 0077
"""

from alembic import op

revision = "0078"
down_revision = "0077"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Processes of the release before insert members without it. A constant default rewrites no row.
    op.execute(
        "ALTER TABLE memberships ADD COLUMN IF NOT EXISTS was_linked boolean NOT NULL DEFAULT false"
    )
