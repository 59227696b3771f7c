-- Find the orgs that work, where the limits of each end user were set after a moment; org by org,
-- by the key of `budgets`: very many end users may have limits of their own.
SELECT o.id FROM orgs o CROSS JOIN LATERAL (
    SELECT FROM budgets b
    WHERE b.org_id = o.id AND b.scope = 'end_user' AND b.max_cost_usd_per_month IS NOT NULL
        AND b.updated_at > now() - %(watched)s
    LIMIT 1
) AS each_one
WHERE o.suspended_at IS NULL
ORDER BY o.id
