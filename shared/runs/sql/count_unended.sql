-- Count the runs of orgs that have not ended, by the key that created them: all, and those that no
-- worker has yet.
--
-- A message that is offered to an active run becomes a run of its own if that ends first. Sub-runs
-- belong to the run that has started them.
WITH wanted AS (
    SELECT unnest((SELECT %(org_ids)s::uuid[])) AS org_id
)
SELECT w.org_id, u.api_key_id, count(*) AS unended,
    count(*) FILTER (WHERE u.state IN ('queued', 'pending', 'scheduled')) AS queued
FROM wanted w CROSS JOIN LATERAL (
    SELECT api_key_id, state FROM runs
    WHERE org_id = w.org_id AND ended_at IS NULL AND parent_run_id IS NULL
        AND state IN ('queued', 'executing', 'waiting', 'suspended', 'pending', 'scheduled')
    UNION ALL
    SELECT api_key_id, 'pending' FROM offered_messages WHERE org_id = w.org_id
) AS u
GROUP BY w.org_id, u.api_key_id
