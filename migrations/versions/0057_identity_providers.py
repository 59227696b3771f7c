"""Identity providers of orgs, the identities of users there, and logins by them.

Revision ID: 0057
Revises: 0056
"""

from alembic import op

revision = "0057"
down_revision = "0056"
branch_labels = None
depends_on = None

_STATEMENTS = """
CREATE TABLE identity_providers (
    id uuid CONSTRAINT pk_identity_providers PRIMARY KEY,
    org_id uuid NOT NULL CONSTRAINT uq_identity_providers_org_id UNIQUE
        CONSTRAINT fk_identity_providers_org_id REFERENCES orgs (id) ON DELETE CASCADE,
    issuer text NOT NULL,
    client_id text NOT NULL,
    client_secret_encrypted bytea,
    signing_algorithm text NOT NULL,
    email_domains text[] NOT NULL,
    joining_role text NOT NULL,
    assumes_verified_email boolean NOT NULL,
    session_hours integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE identities (
    id uuid CONSTRAINT pk_identities PRIMARY KEY,
    provider_id uuid NOT NULL CONSTRAINT fk_identities_provider_id
        REFERENCES identity_providers (id) ON DELETE CASCADE,
    subject text NOT NULL,
    user_id uuid NOT NULL CONSTRAINT fk_identities_user_id
        REFERENCES users (id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT uq_identities_provider_id_subject UNIQUE (provider_id, subject),
    CONSTRAINT uq_identities_provider_id_user_id UNIQUE (provider_id, user_id)
);
CREATE INDEX ix_identities_user_id ON identities (user_id);

CREATE TABLE spent_login_states (
    state_hash text CONSTRAINT pk_spent_login_states PRIMARY KEY,
    expires_at timestamptz NOT NULL
);
CREATE INDEX ix_spent_login_states_expires_at ON spent_login_states (expires_at);

ALTER TABLE refresh_tokens ADD COLUMN identity_id uuid
    CONSTRAINT fk_refresh_tokens_identity_id REFERENCES identities (id) ON DELETE CASCADE;
ALTER TABLE refresh_tokens ADD COLUMN session_ends_at timestamptz;
CREATE INDEX ix_refresh_tokens_identity_id ON refresh_tokens (identity_id)
    WHERE identity_id IS NOT NULL;
"""


def upgrade() -> None:
    op.execute(_STATEMENTS)
