"""An index by which workers go round the orgs and end users that have queued runs.

Revision ID: 0054
Revises: 0053
"""

from alembic import op

revision = "0054"
down_revision = "0053"
branch_labels = None
depends_on = None

_NAME = "ix_runs_queued_org_id_end_user_id_queued_at"


def upgrade() -> None:
    # Beside running services. An attempt that broke off has left an invalid index.
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {_NAME}")
        op.execute(
            f"CREATE INDEX CONCURRENTLY {_NAME}"
            " ON runs (org_id, coalesce(end_user_id, ''), queued_at)"
            " WHERE state = 'queued' AND agent IS NULL"
        )
