"""Indexes by which the runs of an org that have not ended are counted.

Revision ID: 0050
Revises: 0049
"""

from alembic import op

revision = "0050"
down_revision = "0049"
branch_labels = None
depends_on = None

_INDEXES = {
    # Without the second condition, looks for runs of a thread would read all of this index.
    "ix_runs_unended_org_id_state": "runs (org_id, state)"
    " WHERE ended_at IS NULL AND org_id IS NOT NULL",
    "ix_offered_messages_org_id": "offered_messages (org_id)",
}


def upgrade() -> None:
    # Beside running services. An attempt that broke off has left an invalid index.
    with op.get_context().autocommit_block():
        for name, rows in _INDEXES.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {rows}")
