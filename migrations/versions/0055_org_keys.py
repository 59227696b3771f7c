"""A key for each org, by which its secrets are encrypted.

Revision ID: 0055
Revises: 0054
"""

from alembic import op

revision = "0055"
down_revision = "0054"
branch_labels = None
depends_on = None

_STATEMENTS = """
CREATE TABLE org_keys (
    org_id uuid NOT NULL,
    wrapped bytea NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_org_keys PRIMARY KEY (org_id),
    CONSTRAINT fk_org_keys_org_id FOREIGN KEY (org_id) REFERENCES orgs (id) ON DELETE CASCADE
);
"""


def upgrade() -> None:
    op.execute(_STATEMENTS)
