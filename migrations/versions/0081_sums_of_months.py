"""Costs of a month, of an org or a key, are read from the sums of its usage.

Revision ID: 0081
Revises: 0080
"""

from alembic import op

revision = "0081"
down_revision = "0080"
branch_labels = None
depends_on = None

_OF_A_KEY = "WHERE model IS NULL AND api_key_id IS NOT NULL"
# The sums are of the days on which runs have ended. A run that reserved something in a month before
# that of its end counts in the former: few do, and these have an index. An org may have very many
# keys, each of which has sums of its own.
_INDEXES = {
    "ix_run_usage_org_id_ended_at_in_another_month": (
        "run_usage (org_id, ended_at)"
        " WHERE month <> date_trunc('month', ended_at AT TIME ZONE 'UTC')::date"
    ),
    "ix_usage_days_org_id_api_key_id_day": f"usage_days (org_id, api_key_id, day) {_OF_A_KEY}",
    "ix_usage_intervals_org_id_api_key_id_began_at": (
        f"usage_intervals (org_id, api_key_id, began_at) {_OF_A_KEY}"
    ),
}

_FUNCTION = """
CREATE OR REPLACE FUNCTION month_usd(of_org uuid, of_key uuid, of_month date) RETURNS numeric
LANGUAGE plpgsql STABLE AS $$
DECLARE
    next_month date := (of_month + interval '1 month')::date;
    since timestamptz := of_month::timestamp AT TIME ZONE 'UTC';
    until timestamptz := next_month::timestamp AT TIME ZONE 'UTC';
    days_until date;
    days_end timestamptz;
    intervals_end timestamptz;
    usd numeric := 0;
BEGIN
    SELECT u.day, u.interval_at INTO days_until, intervals_end FROM usage_days_until u;
    days_end := days_until::timestamp AT TIME ZONE 'UTC';
    IF days_until IS NULL THEN
        days_end := since;
        intervals_end := since;
    END IF;
    intervals_end := least(greatest(since, days_end, intervals_end), until);

    -- An org and a key have an index each: the org may have very many other keys and runs.
    IF of_key IS NULL THEN
        SELECT usd + coalesce(sum(d.cost_usd), 0) INTO usd FROM usage_days d
        WHERE d.org_id = of_org AND d.day >= of_month AND d.day < least(days_until, next_month)
            AND days_until IS NOT NULL AND d.model IS NULL;

        SELECT usd + coalesce(sum(i.cost_usd), 0) INTO usd FROM usage_intervals i
        WHERE i.org_id = of_org AND i.began_at >= greatest(since, days_end)
            AND i.began_at < intervals_end AND i.model IS NULL;

        SELECT usd + coalesce(sum(r.cost_usd), 0) INTO usd FROM run_usage r
        WHERE r.org_id = of_org AND r.ended_at >= intervals_end AND r.ended_at < until;
    ELSE
        SELECT usd + coalesce(sum(d.cost_usd), 0) INTO usd FROM usage_days d
        WHERE d.org_id = of_org AND d.api_key_id = of_key
            AND d.day >= of_month AND d.day < least(days_until, next_month)
            AND days_until IS NOT NULL AND d.model IS NULL;

        SELECT usd + coalesce(sum(i.cost_usd), 0) INTO usd FROM usage_intervals i
        WHERE i.org_id = of_org AND i.api_key_id = of_key
            AND i.began_at >= greatest(since, days_end)
            AND i.began_at < intervals_end AND i.model IS NULL;

        SELECT usd + coalesce(sum(r.cost_usd), 0) INTO usd FROM run_usage r
        WHERE r.org_id = of_org AND r.api_key_id = of_key
            AND r.ended_at >= intervals_end AND r.ended_at < until;
    END IF;

    SELECT usd + coalesce(sum(CASE WHEN r.month = of_month THEN r.cost_usd ELSE -r.cost_usd END), 0)
    INTO usd FROM run_usage r
    WHERE r.org_id = of_org AND r.ended_at >= since
        AND r.month <> date_trunc('month', r.ended_at AT TIME ZONE 'UTC')::date
        AND (r.month = of_month OR r.ended_at < until)
        -- In this form no index of keys is taken, which has all runs of the key.
        AND coalesce(r.api_key_id = of_key, of_key IS NULL);
    RETURN usd;
END $$
"""


def upgrade() -> None:
    # Runs end while they are built. An attempt that broke off has left an invalid index.
    with op.get_context().autocommit_block():
        for name, rows in _INDEXES.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {rows}")
    op.execute(_FUNCTION)
