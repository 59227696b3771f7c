"""Resets of passwords by a token that works once.

Revision ID: 0051
Revises: 0050
"""

from alembic import op

revision = "0051"
down_revision = "0050"
branch_labels = None
depends_on = None

_PASSWORD_RESETS = """
CREATE TABLE password_resets (
    user_id uuid CONSTRAINT pk_password_resets PRIMARY KEY
        CONSTRAINT fk_password_resets_user_id REFERENCES users (id) ON DELETE CASCADE,
    token_hash text NOT NULL CONSTRAINT uq_password_resets_token_hash UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);
"""


def upgrade() -> None:
    op.execute(_PASSWORD_RESETS)
