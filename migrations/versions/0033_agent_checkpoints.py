"""The checkpoints of custom agents.

Revision ID: 0033
Revises: 0032
"""

from alembic import op

revision = "0033"
down_revision = "0032"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE agent_checkpoints (
            run_id UUID CONSTRAINT pk_agent_checkpoints PRIMARY KEY
                CONSTRAINT fk_agent_checkpoints_run_id REFERENCES runs (id) ON DELETE CASCADE,
            fence BIGINT NOT NULL,
            data TEXT NOT NULL,
            stored_at TIMESTAMPTZ NOT NULL DEFAULT now()
        )
    """)
