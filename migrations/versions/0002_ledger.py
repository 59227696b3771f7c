"""The tool ledger keeps results; queued runs are found by their age.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tool_calls", sa.Column("done_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("tool_calls", sa.Column("output", sa.Text(), nullable=True))
    op.add_column("tool_calls", sa.Column("is_error", sa.Boolean(), nullable=True))
    op.add_column("tool_calls", sa.Column("duration_ms", sa.BigInteger(), nullable=True))
    op.create_index(
        "ix_runs_queued_at",
        "runs",
        ["queued_at"],
        unique=False,
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.drop_index(
        "ix_runs_enqueue_at", table_name="runs", postgresql_where=sa.text("state = 'queued'")
    )
    op.drop_column("runs", "enqueues")
    op.drop_column("runs", "enqueue_at")


def downgrade() -> None:
    op.add_column("runs", sa.Column("enqueue_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "runs", sa.Column("enqueues", sa.Integer(), server_default=sa.text("0"), nullable=False)
    )
    op.create_index(
        "ix_runs_enqueue_at",
        "runs",
        ["enqueue_at"],
        unique=False,
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.drop_index(
        "ix_runs_queued_at", table_name="runs", postgresql_where=sa.text("state = 'queued'")
    )
    for column in ("duration_ms", "is_error", "output", "done_at"):
        op.drop_column("tool_calls", column)
