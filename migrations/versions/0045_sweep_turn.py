"""The time of the last sweep in a table of its own.

The row of `installation` names the installation in Redis, with the transaction that wrote it last.

Revision ID: 0045
Revises: 0044
"""

from alembic import op

revision = "0045"
down_revision = "0044"
branch_labels = None
depends_on = None

_STATEMENTS = """
CREATE TABLE sweep_turn (
    is_one boolean DEFAULT true NOT NULL,
    swept_at timestamptz,
    CONSTRAINT pk_sweep_turn PRIMARY KEY (is_one),
    CONSTRAINT ck_sweep_turn_is_one CHECK (is_one)
);
INSERT INTO sweep_turn DEFAULT VALUES;
"""


def upgrade() -> None:
    op.execute(_STATEMENTS)
