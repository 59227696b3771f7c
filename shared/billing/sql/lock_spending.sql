-- Lock rows of `spending` in the one order.
SELECT FROM spending JOIN (
    SELECT unnest((SELECT %(orgs)s::uuid[])) AS org_id,
        unnest((SELECT %(scopes)s::text[])) AS scope,
        unnest((SELECT %(months)s::date[])) AS month
) AS wanted USING (org_id, scope, month)
ORDER BY org_id, scope, month FOR UPDATE OF spending
