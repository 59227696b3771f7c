-- Set what end users of an org have spent this month to the cost of their runs that have ended.
UPDATE spending s SET spent_usd = (
    SELECT coalesce(sum(u.cost_usd), 0) FROM run_usage u
    WHERE u.org_id = s.org_id AND u.end_user_id = substr(s.scope, length('end_user:') + 1)
        AND u.ended_at >= s.month::timestamp AT TIME ZONE 'UTC' AND u.month = s.month
)
WHERE s.org_id = %(org_id)s AND starts_with(s.scope, 'end_user:')
    AND s.month = date_trunc('month', now() AT TIME ZONE 'UTC')::date
