"""Deliveries of webhooks where a budget is used up to 80 % or wholly.

Revision ID: 0042
Revises: 0041
"""

from alembic import op

revision = "0042"
down_revision = "0041"

# A trigger, for the reasons that 0039 has. Whether a limit was reached before is not asked: each
# endpoint has one delivery at most for a percentage of a limit in a month, and the 80 % are not
# reported after the whole. Spending of personas and of trees of runs has no row in `budgets`.
_STATEMENTS = """
ALTER TABLE spending ADD COLUMN exhausted_at timestamptz;

CREATE FUNCTION budgets_have_their_deliveries() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    is_exhausted boolean := TG_OP = 'UPDATE' AND NEW.exhausted_at IS NOT NULL
        AND NEW.exhausted_at IS DISTINCT FROM OLD.exhausted_at;
    most numeric := (
        SELECT max_cost_usd_per_month FROM budgets
        WHERE org_id = NEW.org_id AND scope = NEW.scope
    );
BEGIN
    IF most IS NULL AND starts_with(NEW.scope, 'end_user:') THEN
        most := (
            SELECT max_cost_usd_per_month FROM budgets
            WHERE org_id = NEW.org_id AND scope = 'end_user'
        );
    END IF;
    IF most IS NULL OR NOT is_exhausted AND NEW.spent_usd < most * 0.8 THEN
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

CREATE TRIGGER budgets_have_their_deliveries_inserted AFTER INSERT ON spending
    FOR EACH ROW WHEN (NEW.spent_usd > 0) EXECUTE FUNCTION budgets_have_their_deliveries();

CREATE TRIGGER budgets_have_their_deliveries_updated AFTER UPDATE ON spending
    FOR EACH ROW WHEN (
        NEW.spent_usd > OLD.spent_usd OR NEW.exhausted_at IS DISTINCT FROM OLD.exhausted_at
    ) EXECUTE FUNCTION budgets_have_their_deliveries();
"""


def upgrade() -> None:
    op.execute(_STATEMENTS)
