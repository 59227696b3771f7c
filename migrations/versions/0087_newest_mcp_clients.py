"""The grant of an MCP server whose client was registered last.

Revision ID: 0087
Revises: 0086
"""

from alembic import op

revision = "0087"
down_revision = "0086"
branch_labels = None
depends_on = None

_COLUMN = "client_registered_at"
_INDEX = f"ix_mcp_grants_config_id_{_COLUMN}"


def upgrade() -> None:
    # Calls refresh tokens while it is built. An attempt that broke off has left the column
    # and an invalid index.
    with op.get_context().autocommit_block():
        op.execute(f"ALTER TABLE mcp_grants ADD COLUMN IF NOT EXISTS {_COLUMN} timestamptz")
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {_INDEX}")
        op.execute(f"CREATE INDEX CONCURRENTLY {_INDEX} ON mcp_grants (config_id, {_COLUMN})")
