"""The earlier runs of a thread are read from an index, the newest first.

Revision ID: 0009
Revises: 0008
"""

from alembic import op

revision = "0009"
down_revision = "0008"

_NAME = "ix_runs_thread_id_position"


def upgrade() -> None:
    # Runs are created and executed while it is built. A build that was interrupted leaves an
    # invalid index behind, which would count as existing.
    with op.get_context().autocommit_block():
        op.drop_index(_NAME, "runs", if_exists=True, postgresql_concurrently=True)
        op.create_index(_NAME, "runs", ["thread_id", "position"], postgresql_concurrently=True)
