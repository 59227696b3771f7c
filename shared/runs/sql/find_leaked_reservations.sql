-- Find reservations whose run was deleted, by one look into the key of `runs` for each: a join may
-- read all of it.
SELECT h.run_id AS id, h.org_id, h.cost_usd, h.servers_usd, h.held_credits
FROM holds h LEFT JOIN LATERAL (
    SELECT r.id FROM runs r WHERE r.id = h.run_id LIMIT 1
) AS run ON true
WHERE run.id IS NULL
ORDER BY h.run_id LIMIT %(batch)s
