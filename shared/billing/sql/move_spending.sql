-- Add amounts to rows of `spending`, and keep their locks, taken by scope and month.
--
-- A row that is missing begins with what runs of its scope have cost in its month. A persona's
-- begins with nothing: a version has its limit from the beginning, so all that it limits have had a
-- reservation. So does that of a run with its sub-runs, whose costs so far are in its reservation.
WITH change AS (
    SELECT unnest((SELECT %(scopes)s::text[])) AS scope,
        unnest((SELECT %(months)s::date[])) AS month,
        unnest((SELECT %(spents)s::numeric[])) AS spent,
        unnest((SELECT %(helds)s::numeric[])) AS held
)
INSERT INTO spending AS s (org_id, scope, month, spent_usd, held_usd)
SELECT %(org_id)s, c.scope, c.month,
    c.spent + CASE WHEN EXISTS (
        SELECT FROM spending s
        WHERE s.org_id = %(org_id)s AND s.scope = c.scope AND s.month = c.month
    ) THEN 0 ELSE (
        CASE WHEN starts_with(c.scope, 'run:') OR starts_with(c.scope, 'persona:') THEN 0
        -- An end user has an index: the org may have very many other runs.
        WHEN starts_with(c.scope, 'end_user:') THEN (
            SELECT coalesce(sum(u.cost_usd), 0) FROM run_usage u
            WHERE u.org_id = %(org_id)s
                AND u.end_user_id = substr(c.scope, length('end_user:') + 1)
                AND u.ended_at >= c.month::timestamp AT TIME ZONE 'UTC'
                AND u.month = c.month
        )
        WHEN starts_with(c.scope, 'api_key:') THEN
            month_usd(%(org_id)s, substr(c.scope, length('api_key:') + 1)::uuid, c.month)
        WHEN c.scope = 'org' THEN month_usd(%(org_id)s, NULL, c.month)
        ELSE 0 END
    ) END,
    -- CHECK constraints run on the proposed row before ON CONFLICT applies.
    greatest(c.held, 0)
FROM change c
ORDER BY c.scope, c.month
ON CONFLICT (org_id, scope, month) DO UPDATE SET
    (spent_usd, held_usd) = (
        SELECT s.spent_usd + c.spent, s.held_usd + c.held
        FROM change c WHERE c.scope = s.scope AND c.month = s.month
    )
RETURNING scope, month, spent_usd, held_usd
