"""Stored personas have the former field `confirm` under its name, `require_approval`.

Revision ID: 0090
Revises: 0089
"""

from alembic import op

revision = "0090"
down_revision = "0089"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Processes of the release before read the new name, too, and write no other.
    op.execute(
        """
        UPDATE personas SET definition = (definition - 'confirm')
            || jsonb_build_object('require_approval', definition -> 'confirm')
        WHERE definition ? 'confirm'
        """
    )
