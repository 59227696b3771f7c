-- Lock a claimed run's reservation; one of nothing is begun if there is none.
INSERT INTO holds (run_id, org_id, month, scopes, cost_usd, held_usd)
SELECT id, org_id, date_trunc('month', now() AT TIME ZONE 'UTC')::date, '{}', 0, 0 FROM runs
WHERE id = %(run_id)s AND fence = %(fence)s AND state = 'executing' FOR SHARE
ON CONFLICT (run_id) DO UPDATE SET cost_usd = holds.cost_usd
RETURNING run_id, org_id, month, scopes, held_usd, kept_usd, held_credits,
    date_trunc('month', now() AT TIME ZONE 'UTC')::date AS this_month
