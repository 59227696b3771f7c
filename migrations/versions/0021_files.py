"""Files, and the messages and tool results that refer to them.

Revision ID: 0021
Revises: 0020
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE files (
            id uuid CONSTRAINT pk_files PRIMARY KEY,
            org_id uuid NOT NULL
                CONSTRAINT fk_files_org_id REFERENCES orgs (id) ON DELETE CASCADE,
            created_by_user_id uuid NOT NULL
                CONSTRAINT fk_files_created_by_user_id REFERENCES users (id) ON DELETE CASCADE,
            name text NOT NULL,
            media_type text,
            size bigint,
            sha256 text,
            stored_at timestamptz,
            created_at timestamptz NOT NULL DEFAULT now(),
            expires_at timestamptz
        )
        """
    )
    op.execute("CREATE INDEX ix_files_expires_at ON files (expires_at) WHERE expires_at IS NOT NULL")
    op.add_column("messages", sa.Column("parts", JSONB))
    op.add_column("tool_calls", sa.Column("files", JSONB))


