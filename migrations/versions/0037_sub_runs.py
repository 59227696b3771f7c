"""Runs that runs have started: whose they are, and the state in which a run waits for them.

Revision ID: 0037
Revises: 0036
"""

import sqlalchemy as sa
from alembic import op

revision = "0037"
down_revision = "0036"
branch_labels = None
depends_on = None

_ACTIVE = "state IN ('queued', 'executing', 'waiting', 'suspended')"


def upgrade() -> None:
    # Beside running services: a statement of the previous release that names fewer states finds
    # these indexes, too, so that each replaces one. An attempt that broke off has left columns, and
    # maybe an invalid index.
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE runs ADD COLUMN IF NOT EXISTS parent_run_id uuid")
        op.execute("ALTER TABLE threads ADD COLUMN IF NOT EXISTS parent_run_id uuid")
        op.execute("ALTER TABLE holds ADD COLUMN IF NOT EXISTS caps jsonb")
        for name, create in {
            "uq_runs_unended_thread_id": f"UNIQUE INDEX CONCURRENTLY uq_runs_unended_thread_id"
            f" ON runs (thread_id) WHERE {_ACTIVE}",
            "ix_runs_unheld_cancel_requested_at": "INDEX CONCURRENTLY"
            " ix_runs_unheld_cancel_requested_at ON runs (cancel_requested_at)"
            " WHERE cancel_requested_at IS NOT NULL"
            " AND state IN ('queued', 'waiting', 'suspended')",
            "ix_runs_parent_run_id_created_at_id": "INDEX CONCURRENTLY"
            " ix_runs_parent_run_id_created_at_id ON runs (parent_run_id, created_at, id)"
            " WHERE parent_run_id IS NOT NULL",
            "ix_runs_active_parent_run_id": "INDEX CONCURRENTLY ix_runs_active_parent_run_id"
            f" ON runs (parent_run_id) WHERE parent_run_id IS NOT NULL AND {_ACTIVE}",
        }.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.execute(f"CREATE {create}")
        for name in ("uq_runs_active_thread_id", "ix_runs_cancel_requested_at"):
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
    op.create_table(
        "sub_runs",
        sa.Column(
            "run_id", sa.Uuid, sa.ForeignKey("runs.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("parent_run_id", sa.Uuid, nullable=False),
        sa.Column("parent_call_id", sa.Text, nullable=False),
        sa.Column("root_run_id", sa.Uuid, nullable=False),
        sa.Column("depth", sa.Integer, nullable=False),
        sa.Column("levels_left", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("run_id", name="pk_sub_runs"),
        sa.UniqueConstraint(
            "parent_run_id", "parent_call_id", name="uq_sub_runs_parent_run_id_parent_call_id"
        ),
    )
