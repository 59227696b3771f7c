"""The last measurements, for all processes that show them.

Revision ID: 0059
Revises: 0058
"""

from alembic import op

revision = "0059"
down_revision = "0058"
branch_labels = None
depends_on = None

_STATEMENTS = """
CREATE TABLE measurements (
    is_one boolean DEFAULT true NOT NULL,
    taken_at timestamptz NOT NULL,
    data json NOT NULL,
    CONSTRAINT pk_measurements PRIMARY KEY (is_one),
    CONSTRAINT ck_measurements_is_one CHECK (is_one)
);
INSERT INTO measurements (taken_at, data) VALUES ('epoch', '{}');
"""


def upgrade() -> None:
    op.execute(_STATEMENTS)
