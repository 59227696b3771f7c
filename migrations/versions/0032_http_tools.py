"""The tools of an org that runs call by HTTP.

Revision ID: 0032
Revises: 0031
"""

from alembic import op

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None

_STATEMENT = """
CREATE TABLE http_tools (
    id UUID NOT NULL,
    org_id UUID NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    parameters TEXT NOT NULL,
    idempotent BOOLEAN NOT NULL,
    timeout_seconds DOUBLE PRECISION NOT NULL,
    url TEXT NOT NULL,
    headers_encrypted BYTEA,
    header_names JSONB DEFAULT '[]' NOT NULL,
    secret_encrypted BYTEA NOT NULL,
    former_secret_encrypted BYTEA,
    former_secret_until TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_http_tools PRIMARY KEY (id),
    CONSTRAINT uq_http_tools_org_id_name UNIQUE (org_id, name),
    CONSTRAINT fk_http_tools_org_id FOREIGN KEY(org_id) REFERENCES orgs (id) ON DELETE CASCADE
)
"""


def upgrade() -> None:
    op.execute(_STATEMENT)
