"""Runs that no worker holds and that are to be cancelled are found by an index.

Revision ID: 0006
Revises: 0005
"""

from alembic import op

revision = "0006"
down_revision = "0005"

_INDEX = "ix_runs_cancel_requested_at"


def upgrade() -> None:
    # A transaction of its own, beside running services. An attempt that broke off has left an
    # invalid index of this name.
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {_INDEX}")
        op.execute(
            f"CREATE INDEX CONCURRENTLY {_INDEX} ON runs (cancel_requested_at)"
            " WHERE cancel_requested_at IS NOT NULL AND state IN ('queued', 'waiting')"
        )
