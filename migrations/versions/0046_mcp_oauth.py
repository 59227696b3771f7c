"""MCP servers that require OAuth: what people have granted, and what they are asked for.

Revision ID: 0046
Revises: 0045
"""

from alembic import op

revision = "0046"
down_revision = "0045"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE mcp_configs ADD COLUMN oauth jsonb;
ALTER TABLE mcp_configs ADD COLUMN client_secret_encrypted bytea;

CREATE TABLE mcp_grants (
    config_id uuid NOT NULL,
    owner text NOT NULL,
    grant_encrypted bytea NOT NULL,
    obtained_at timestamptz NOT NULL,
    CONSTRAINT pk_mcp_grants PRIMARY KEY (config_id, owner),
    CONSTRAINT fk_mcp_grants_config_id FOREIGN KEY (config_id) REFERENCES mcp_configs (id)
        ON DELETE CASCADE
);

CREATE TABLE mcp_authorizations (
    state_hash bytea NOT NULL,
    config_id uuid NOT NULL,
    owner text NOT NULL,
    run_id uuid,
    request_encrypted bytea NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    expires_at timestamptz NOT NULL,
    answered_at timestamptz,
    CONSTRAINT pk_mcp_authorizations PRIMARY KEY (state_hash),
    CONSTRAINT fk_mcp_authorizations_config_id FOREIGN KEY (config_id)
        REFERENCES mcp_configs (id) ON DELETE CASCADE
);

CREATE INDEX ix_mcp_authorizations_config_id_owner ON mcp_authorizations (config_id, owner);
"""


def upgrade() -> None:
    op.execute(_STATEMENTS)
