"""The usage of an API key is read from an index.

Revision ID: 0075
Revises: 0074
"""

from alembic import op

revision = "0075"
down_revision = "0074"
branch_labels = None
depends_on = None

_INDEX = "ix_run_usage_org_id_api_key_id_ended_at"


def upgrade() -> None:
    # Runs end while it is built. An attempt that broke off has left an invalid index.
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {_INDEX}")
        op.execute(
            f"CREATE INDEX CONCURRENTLY {_INDEX} ON run_usage (org_id, api_key_id, ended_at)"
            " WHERE api_key_id IS NOT NULL"
        )
