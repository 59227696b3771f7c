"""The tool ledger keeps results; queued runs are found by their age.

Revision ID: 0002
Revises: 0001
"""

from alembic import op

revision = "0002"
down_revision = "0001"

_STATEMENTS = """
ALTER TABLE tool_calls ADD COLUMN done_at TIMESTAMP WITH TIME ZONE;
ALTER TABLE tool_calls ADD COLUMN output TEXT;
ALTER TABLE tool_calls ADD COLUMN is_error BOOLEAN;
ALTER TABLE tool_calls ADD COLUMN duration_ms BIGINT;
CREATE INDEX ix_runs_queued_at ON runs (queued_at) WHERE state = 'queued';
DROP INDEX ix_runs_enqueue_at;
ALTER TABLE runs DROP COLUMN enqueues;
ALTER TABLE runs DROP COLUMN enqueue_at;
"""


def upgrade() -> None:
    op.execute(_STATEMENTS)
