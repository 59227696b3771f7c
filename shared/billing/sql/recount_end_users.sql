-- Set what end users of an org have spent this month to the cost of their runs that have ended.
UPDATE spending s SET spent_usd = ended.usd
FROM (
    SELECT unnest((SELECT %(scopes)s::text[])) AS scope,
        date_trunc('month', now() AT TIME ZONE 'UTC')::date AS month
) AS w
CROSS JOIN LATERAL (
    SELECT coalesce(sum(u.cost_usd), 0) AS usd FROM run_usage u
    WHERE u.org_id = %(org_id)s AND u.end_user_id = substr(w.scope, length('end_user:') + 1)
        AND u.ended_at >= w.month::timestamp AT TIME ZONE 'UTC' AND u.month = w.month
) AS ended
WHERE s.org_id = %(org_id)s AND s.scope = w.scope AND s.month = w.month
    AND s.spent_usd <> ended.usd
