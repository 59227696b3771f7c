"""Suspended orgs, and why a run was cancelled.

Revision ID: 0064
Revises: 0063
"""

from alembic import op

revision = "0064"
down_revision = "0063"
branch_labels = None
depends_on = None

_COLUMNS = """
ALTER TABLE orgs ADD COLUMN suspended_at timestamptz, ADD COLUMN suspension_reason text;
ALTER TABLE runs ADD COLUMN cancel_reason text;
"""

_INDEX = "ix_orgs_suspended"


def upgrade() -> None:
    op.execute(_COLUMNS)
    # Beside running services. An attempt that broke off has left an invalid index.
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {_INDEX}")
        op.execute(
            f"CREATE INDEX CONCURRENTLY {_INDEX} ON orgs (id) WHERE suspended_at IS NOT NULL"
        )
