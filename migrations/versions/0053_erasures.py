"""Records of erasures.

Revision ID: 0053
Revises: 0052
"""

from alembic import op

revision = "0053"
down_revision = "0052"
branch_labels = None
depends_on = None

_ERASURES = """
CREATE TABLE erasures (
    id uuid CONSTRAINT pk_erasures PRIMARY KEY,
    kind text NOT NULL,
    org_id uuid,
    user_id uuid,
    threads bigint NOT NULL,
    messages bigint NOT NULL,
    runs bigint NOT NULL,
    files bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
"""


def upgrade() -> None:
    op.execute(_ERASURES)
