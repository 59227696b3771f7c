"""A user may be in several orgs, a login is in one of them; invitations.

Revision ID: 0049
Revises: 0048
"""

from alembic import op

revision = "0049"
down_revision = "0048"
branch_labels = None
depends_on = None

# `org_id` of refresh tokens stays nullable: the previous release inserts them without it.
_MEMBERS = """
ALTER TABLE memberships DROP CONSTRAINT pk_memberships;
ALTER TABLE memberships ADD CONSTRAINT pk_memberships PRIMARY KEY (user_id, org_id);
CREATE INDEX ix_memberships_org_id_created_at_user_id ON memberships (org_id, created_at, user_id);
DROP INDEX ix_memberships_org_id;

ALTER TABLE refresh_tokens ADD COLUMN org_id uuid
    CONSTRAINT fk_refresh_tokens_org_id REFERENCES orgs (id) ON DELETE CASCADE;
UPDATE refresh_tokens t SET org_id = m.org_id FROM memberships m WHERE m.user_id = t.user_id;

CREATE TABLE invitations (
    id uuid CONSTRAINT pk_invitations PRIMARY KEY,
    org_id uuid NOT NULL CONSTRAINT fk_invitations_org_id REFERENCES orgs (id) ON DELETE CASCADE,
    name text NOT NULL,
    role text NOT NULL,
    token_hash text NOT NULL CONSTRAINT uq_invitations_token_hash UNIQUE,
    created_by_user_id uuid NOT NULL
        CONSTRAINT fk_invitations_created_by_user_id REFERENCES users (id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);
CREATE INDEX ix_invitations_org_id_created_at_id ON invitations (org_id, created_at, id);
"""


def upgrade() -> None:
    op.execute(_MEMBERS)
