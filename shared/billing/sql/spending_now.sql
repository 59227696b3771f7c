-- Read what scopes have spent and reserved this month, UTC, by Postgres' clock.
--
-- Without a limit a scope's row is not kept up to date: what has ended is summed up instead. A
-- persona without a row has spent nothing; see move_spending.sql. `end_user`, which has the limits
-- of each end user, spends nothing itself.
SELECT w.scope, w.month,
    coalesce(CASE WHEN %(are_limited)s THEN s.spent_usd END, (
        CASE WHEN starts_with(w.scope, 'persona:') OR w.scope = 'end_user' THEN 0
        -- An end user has an index: the org may have very many other runs.
        WHEN starts_with(w.scope, 'end_user:') THEN (
            SELECT coalesce(sum(u.cost_usd), 0) FROM run_usage u
            WHERE u.org_id = %(org_id)s
                AND u.end_user_id = substr(w.scope, length('end_user:') + 1)
                AND u.ended_at >= w.month::timestamp AT TIME ZONE 'UTC'
                AND u.month = w.month
        )
        WHEN starts_with(w.scope, 'api_key:') THEN
            month_usd(%(org_id)s, substr(w.scope, length('api_key:') + 1)::uuid, w.month)
        WHEN w.scope = 'org' THEN month_usd(%(org_id)s, NULL, w.month)
        ELSE 0 END
    )) AS spent_usd,
    coalesce(s.held_usd, 0) AS held_usd
FROM (
    SELECT unnest((SELECT %(scopes)s::text[])) AS scope,
        date_trunc('month', now() AT TIME ZONE 'UTC')::date AS month
) AS w
LEFT JOIN spending s ON s.org_id = %(org_id)s AND s.scope = w.scope AND s.month = w.month
