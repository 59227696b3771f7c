-- Find the limits that scopes of an org have, and whether the org pays in advance.
SELECT scope, max_cost_usd, max_cost_usd_per_month, false AS is_prepaid
FROM budgets WHERE org_id = %(org_id)s AND scope = ANY(%(scopes)s)
UNION ALL
SELECT '', NULL, NULL, true FROM credit_balances WHERE org_id = %(org_id)s
