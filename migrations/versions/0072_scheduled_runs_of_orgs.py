"""Scheduled runs by their orgs and times, so that those that are due start in turns of the orgs.

Revision ID: 0072
Revises: 0071
"""

from alembic import op

revision = "0072"
down_revision = "0071"
branch_labels = None
depends_on = None

_INDEX = "ix_runs_scheduled_org_id_not_before"


def upgrade() -> None:
    # Beside running services. An attempt that broke off has left an invalid index.
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {_INDEX}")
        op.execute(
            f"CREATE INDEX CONCURRENTLY {_INDEX} ON runs (org_id, not_before)"
            " WHERE state = 'scheduled' AND not_before IS NOT NULL"
            " AND position >= 2251799813685248 AND ended_at IS NULL"
            " AND cancel_requested_at IS NULL AND org_id IS NOT NULL"
        )
