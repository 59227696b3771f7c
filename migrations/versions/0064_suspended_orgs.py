"""Suspended orgs, and why a run was cancelled.

Revision ID: 0064
Revises: 0063
"""

from alembic import op

revision = "0064"
down_revision = "0063"
branch_labels = None
depends_on = None

_COLUMNS = (
    "ALTER TABLE orgs ADD COLUMN IF NOT EXISTS suspended_at timestamptz,"
    " ADD COLUMN IF NOT EXISTS suspension_reason text",
    "ALTER TABLE runs ADD COLUMN IF NOT EXISTS cancel_reason text",
)
_INDEX = "ix_orgs_suspended"


def upgrade() -> None:
    # Beside running services. One table at a time: who creates a run has a lock of `runs` and then
    # takes one of `orgs`, for its foreign key. An attempt that broke off has left columns, and
    # maybe an invalid index.
    with op.get_context().autocommit_block():
        for add in _COLUMNS:
            op.execute(add)
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {_INDEX}")
        op.execute(
            f"CREATE INDEX CONCURRENTLY {_INDEX} ON orgs (id) WHERE suspended_at IS NOT NULL"
        )
