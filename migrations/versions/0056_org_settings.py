"""Limits and a weight that the operator sets for one org.

Revision ID: 0056
Revises: 0055
"""

from alembic import op

revision = "0056"
down_revision = "0055"
branch_labels = None
depends_on = None

_STATEMENTS = """
CREATE TABLE org_settings (
    org_id uuid NOT NULL,
    org_requests_per_minute integer,
    key_requests_per_minute integer,
    org_concurrent_runs integer,
    key_concurrent_runs integer,
    org_queued_runs integer,
    org_streams integer,
    key_streams integer,
    weight integer,
    CONSTRAINT pk_org_settings PRIMARY KEY (org_id),
    CONSTRAINT fk_org_settings_org_id FOREIGN KEY (org_id) REFERENCES orgs (id) ON DELETE CASCADE,
    CONSTRAINT ck_org_settings_limits CHECK (
        org_requests_per_minute BETWEEN 0 AND 999999999
        AND key_requests_per_minute BETWEEN 0 AND 999999999
        AND org_concurrent_runs BETWEEN 0 AND 999999999
        AND key_concurrent_runs BETWEEN 0 AND 999999999
        AND org_queued_runs BETWEEN 0 AND 999999999
        AND org_streams BETWEEN 0 AND 999999999
        AND key_streams BETWEEN 0 AND 999999999
    ),
    CONSTRAINT ck_org_settings_weight CHECK (weight BETWEEN 1 AND 100)
);
"""


def upgrade() -> None:
    op.execute(_STATEMENTS)
