"""The list of threads leaves out those of sub-runs, and its index has none of them.

Revision ID: 0043
Revises: 0042
"""

import sqlalchemy as sa
from alembic import op

revision = "0043"
down_revision = "0042"
branch_labels = None
depends_on = None

#: Index, columns, condition.
_INDEXES = (
    (
        "ix_threads_listed_visible_to_created_at_id",
        ["visible_to", "created_at", "id"],
        "parent_run_id IS NULL",
    ),
    (
        "ix_threads_parent_run_id_created_at_id",
        ["parent_run_id", "created_at", "id"],
        "parent_run_id IS NOT NULL",
    ),
)


def upgrade() -> None:
    # Threads are created while these are built. A build that was interrupted leaves an invalid
    # index behind, which would count as existing.
    with op.get_context().autocommit_block():
        for name, columns, condition in _INDEXES:
            op.drop_index(name, "threads", if_exists=True, postgresql_concurrently=True)
            op.create_index(
                name,
                "threads",
                columns,
                postgresql_where=sa.text(condition),
                postgresql_concurrently=True,
            )
        # Replaced by the first one: with both, each new thread would cost one more entry.
        op.drop_index(
            "ix_threads_visible_to_created_at_id",
            "threads",
            if_exists=True,
            postgresql_concurrently=True,
        )
