-- Note that end users of an org who have the limit of each one have spent all of it this month.
UPDATE spending s SET exhausted_at = now()
WHERE s.org_id = %(org_id)s AND starts_with(s.scope, 'end_user:')
    AND s.month = date_trunc('month', now() AT TIME ZONE 'UTC')::date
    AND s.spent_usd > 0 AND s.spent_usd >= %(limit)s
    AND NOT EXISTS (
        SELECT FROM budgets b
        WHERE b.org_id = s.org_id AND b.scope = s.scope AND b.max_cost_usd_per_month IS NOT NULL
    )
