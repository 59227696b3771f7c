"""A delivery does not grow old while its endpoint is disabled.

Revision ID: 0080
Revises: 0079
"""

from alembic import op

revision = "0080"
down_revision = "0079"
branch_labels = None
depends_on = None

# With the default, deliveries that are there have 0, as endpoints have, and no row is written. New
# ones that a process of the release before attempts first have null.
_OF_DELIVERIES = """
ALTER TABLE webhook_deliveries
    ADD COLUMN IF NOT EXISTS endpoint_disabled_seconds double precision DEFAULT 0;
ALTER TABLE webhook_deliveries ALTER COLUMN endpoint_disabled_seconds DROP DEFAULT;
"""

# A trigger: processes of the release before enable and disable endpoints, too. Its clock is read
# under the lock of the row: two transactions that change it have begun in any order.
#
# OR REPLACE: `pg_restore --clean` leaves functions that the dump from before does not name.
#
# Since when an endpoint is disabled is not known. An admin has last written it then or later; a
# response with 410 writes no `updated_at`.
_OF_ENDPOINTS = """
ALTER TABLE webhook_endpoints ADD COLUMN disabled_at timestamptz,
    ADD COLUMN disabled_seconds double precision DEFAULT 0 NOT NULL;

UPDATE webhook_endpoints
SET disabled_at = CASE WHEN disabled_reason IS NULL THEN updated_at ELSE now() END
WHERE NOT is_enabled;

CREATE OR REPLACE FUNCTION endpoints_have_their_disabled_time() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.is_enabled THEN
        NEW.disabled_seconds := OLD.disabled_seconds
            + greatest(0, extract(epoch FROM clock_timestamp() - OLD.disabled_at));
        NEW.disabled_at := NULL;
    ELSE
        NEW.disabled_at := clock_timestamp();
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER endpoints_have_their_disabled_time BEFORE UPDATE OF is_enabled ON webhook_endpoints
    FOR EACH ROW WHEN (NEW.is_enabled IS DISTINCT FROM OLD.is_enabled)
    EXECUTE FUNCTION endpoints_have_their_disabled_time();
"""


def upgrade() -> None:
    # Each table by itself: transactions of running services lock both, in any order.
    with op.get_context().autocommit_block():
        op.execute(_OF_DELIVERIES)
    op.execute(_OF_ENDPOINTS)
