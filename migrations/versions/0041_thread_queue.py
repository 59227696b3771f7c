"""The queue of a thread: runs that wait for it or for their time.

Revision ID: 0041
Revises: 0040
"""

from alembic import op

revision = "0041"
down_revision = "0040"
branch_labels = None
depends_on = None

_WAITS = "position >= 2251799813685248 AND ended_at IS NULL"
_INDEXES = {
    "ix_runs_waiting_thread_id_position": f"runs (thread_id, position) WHERE {_WAITS}",
    "ix_runs_not_before": f"runs (not_before) WHERE not_before IS NOT NULL AND {_WAITS}",
    # The statements of the previous release name fewer states, and find this one.
    "ix_runs_unended_cancel_requested_at": "runs (cancel_requested_at)"
    " WHERE cancel_requested_at IS NOT NULL"
    " AND state IN ('queued', 'waiting', 'suspended', 'pending', 'scheduled')",
}


def upgrade() -> None:
    # Beside running services. An attempt that broke off has left columns, and maybe an invalid
    # index.
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE threads ADD COLUMN IF NOT EXISTS on_busy text")
        op.execute(
            "ALTER TABLE runs ADD COLUMN IF NOT EXISTS not_before timestamptz,"
            " ADD COLUMN IF NOT EXISTS has_followers boolean NOT NULL DEFAULT false,"
            " ADD COLUMN IF NOT EXISTS superseded_by uuid"
        )
        for name, rows in _INDEXES.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {rows}")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_runs_unheld_cancel_requested_at")
