"""Runs that a customer's agent workers execute.

Revision ID: 0036
Revises: 0035
"""

import sqlalchemy as sa
from alembic import op

revision = "0036"
down_revision = "0035"
branch_labels = None
depends_on = None

_NAME = "ix_runs_org_id_agent_queued_at"


def upgrade() -> None:
    # Runs are created and executed while it is built. A build that was interrupted leaves an
    # invalid index behind, which would count as existing, and columns.
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE runs ADD COLUMN IF NOT EXISTS agent text")
        op.execute("ALTER TABLE workers ADD COLUMN IF NOT EXISTS org_id uuid")
        op.drop_index(_NAME, "runs", if_exists=True, postgresql_concurrently=True)
        op.create_index(
            _NAME,
            "runs",
            ["org_id", "agent", "queued_at"],
            postgresql_where=sa.text("state = 'queued' AND agent IS NOT NULL"),
            postgresql_concurrently=True,
        )
    op.execute(
        """
        CREATE TABLE agent_runs (
            run_id uuid CONSTRAINT pk_agent_runs PRIMARY KEY
                CONSTRAINT fk_agent_runs_run_id REFERENCES runs (id) ON DELETE CASCADE,
            deadline_at timestamptz NOT NULL
        )
        """
    )
