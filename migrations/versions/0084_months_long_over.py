"""A month that is long over sends no delivery: whether it has sent it before is not known any more.

Revision ID: 0084
Revises: 0083
"""

from alembic import op

revision = "0084"
down_revision = "0083"
branch_labels = None
depends_on = None

# As in 0082, but for the first condition. A delivery is kept for 35 days: for the longest month, and
# four more.
_FUNCTION = """
CREATE OR REPLACE FUNCTION budgets_have_their_deliveries() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    is_exhausted boolean := TG_OP = 'UPDATE' AND NEW.exhausted_at IS NOT NULL
        AND NEW.exhausted_at IS DISTINCT FROM OLD.exhausted_at;
    most numeric;
    set_at timestamptz;
BEGIN
    IF now() >= (NEW.month + interval '1 month' + interval '4 days') AT TIME ZONE 'UTC' THEN
        RETURN NULL;
    END IF;
    SELECT max_cost_usd_per_month, updated_at INTO most, set_at FROM budgets
    WHERE org_id = NEW.org_id AND scope = NEW.scope;
    IF most IS NULL AND starts_with(NEW.scope, 'end_user:') THEN
        SELECT max_cost_usd_per_month, updated_at INTO most, set_at FROM budgets
        WHERE org_id = NEW.org_id AND scope = 'end_user';
    END IF;
    IF most IS NULL OR NOT is_exhausted AND NEW.spent_usd < most * 0.8
        OR set_at >= (NEW.month + interval '1 month') AT TIME ZONE 'UTC'
    THEN
        RETURN NULL;
    END IF;
    INSERT INTO webhook_deliveries (
        id, endpoint_id, org_id, type, ordered_by, seq, created_at, data
    )
    SELECT
        encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) PLACING
            substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
            FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid,
        w.id, NEW.org_id, 'budget.threshold_reached', reached.ordered_by, reached.percent,
        clock_timestamp(),
        json_build_object(
            'scope', NEW.scope,
            'month', to_char(NEW.month, 'YYYY-MM'),
            'percent', reached.percent,
            'max_cost_usd_per_month', trim_scale(most),
            'spent_usd', trim_scale(NEW.spent_usd)
        )::text
    FROM (
        SELECT percent, md5(concat_ws(' ', NEW.scope, NEW.month, trim_scale(most)))::uuid
            AS ordered_by
        FROM (VALUES (80), (100)) AS thresholds (percent)
        WHERE NEW.spent_usd >= most * percent / 100 OR is_exhausted AND percent = 100
    ) AS reached
    JOIN webhook_endpoints w ON w.org_id = NEW.org_id
    WHERE w.is_enabled AND 'budget.threshold_reached' = ANY (w.event_types)
        AND NOT EXISTS (
            SELECT FROM webhook_deliveries later
            WHERE later.endpoint_id = w.id AND later.ordered_by = reached.ordered_by
                AND later.seq > reached.percent
        )
    ORDER BY reached.percent
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
"""


def upgrade() -> None:
    op.execute(_FUNCTION)
