"""The creators of password resets, which end with the role of their creator.

Revision ID: 0069
Revises: 0068
"""

from alembic import op

revision = "0069"
down_revision = "0068"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Null in resets of the release before, which runs beside: they end after a day.
    op.execute("ALTER TABLE password_resets ADD COLUMN created_by_user_id uuid")
