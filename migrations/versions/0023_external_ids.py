"""Threads are found by an id that the client has given.

Revision ID: 0023
Revises: 0022
"""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"

_NAME = "uq_threads_visible_to_external_id"


def upgrade() -> None:
    # No thread has an id yet. A build that was interrupted leaves an invalid index behind.
    with op.get_context().autocommit_block():
        op.drop_index(_NAME, "threads", if_exists=True, postgresql_concurrently=True)
        op.create_index(
            _NAME,
            "threads",
            ["visible_to", "external_id"],
            unique=True,
            postgresql_where=sa.text("external_id IS NOT NULL"),
            postgresql_concurrently=True,
        )
