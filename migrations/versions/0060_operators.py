"""Operators of the installation.

Revision ID: 0060
Revises: 0059
"""

from alembic import op

revision = "0060"
down_revision = "0059"
branch_labels = None
depends_on = None

_STATEMENTS = """
CREATE TABLE operators (
    user_id uuid NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_operators PRIMARY KEY (user_id),
    CONSTRAINT fk_operators_user_id FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE
);
"""


def upgrade() -> None:
    op.execute(_STATEMENTS)
