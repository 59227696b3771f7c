-- Note for a batch of end users of an org that they have spent the limit of each one this month,
-- unless that was noted of this limit: by the time when it was set, which no other one has, even
-- if the clock was set back since. Rows that a run is changing are skipped.
WITH found AS (
    SELECT s.scope, s.month, each_one.updated_at AS set_at FROM spending s
    JOIN budgets each_one ON each_one.org_id = s.org_id AND each_one.scope = 'end_user'
    WHERE s.org_id = %(org_id)s AND s.scope > %(after)s AND starts_with(s.scope, 'end_user:')
        AND s.month = date_trunc('month', now() AT TIME ZONE 'UTC')::date
        AND s.spent_usd > 0 AND s.spent_usd >= each_one.max_cost_usd_per_month
        AND s.exhausted_at IS DISTINCT FROM each_one.updated_at
        AND NOT EXISTS (
            SELECT FROM budgets own
            WHERE own.org_id = s.org_id AND own.scope = s.scope
                AND own.max_cost_usd_per_month IS NOT NULL
        )
    ORDER BY s.scope LIMIT %(most)s FOR UPDATE OF s SKIP LOCKED
)
UPDATE spending s SET exhausted_at = found.set_at
FROM found
WHERE s.org_id = %(org_id)s AND s.scope = found.scope AND s.month = found.month
RETURNING s.scope
