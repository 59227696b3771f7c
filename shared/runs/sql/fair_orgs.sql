-- Go once round the orgs that have queued runs, in the order of their ids, from an org on: at most one
-- more of them than `steps`, each with its weight and its number of queued runs, up to the weight.
--
-- Each step is one look into an index, however long the queue is. Suspended orgs have no turn: a step
-- through one does not count.
WITH RECURSIVE suspended AS MATERIALIZED (
    SELECT id FROM orgs WHERE suspended_at IS NOT NULL
), step AS (
    SELECT (first.org_id NOT IN (SELECT id FROM suspended))::integer AS number, first.org_id, first.org_id AS first_org_id FROM (
        SELECT coalesce(
            (SELECT r.org_id FROM runs r
                WHERE r.state = 'queued' AND r.agent IS NULL AND r.org_id >= %(from_org_id)s::uuid
                ORDER BY r.org_id LIMIT 1),
            (SELECT r.org_id FROM runs r
                WHERE r.state = 'queued' AND r.agent IS NULL
                ORDER BY r.org_id LIMIT 1)
        ) AS org_id
    ) AS first
    UNION ALL
    SELECT step.number + (next.org_id NOT IN (SELECT id FROM suspended))::integer, next.org_id, step.first_org_id FROM step CROSS JOIN LATERAL (
        SELECT coalesce(
            (SELECT r.org_id FROM runs r
                WHERE r.state = 'queued' AND r.agent IS NULL AND r.org_id > step.org_id
                ORDER BY r.org_id LIMIT 1),
            (SELECT r.org_id FROM runs r
                WHERE r.state = 'queued' AND r.agent IS NULL
                ORDER BY r.org_id LIMIT 1)
        ) AS org_id
    ) AS next
    WHERE step.number <= %(steps)s AND next.org_id <> step.first_org_id
)
SELECT step.org_id, own.weight, (
    SELECT count(*)::integer FROM (
        SELECT FROM runs r
        WHERE r.state = 'queued' AND r.agent IS NULL AND r.org_id = step.org_id
        LIMIT own.weight
    ) AS queued
) AS ready
FROM step CROSS JOIN LATERAL (
    SELECT coalesce((SELECT s.weight FROM org_settings s WHERE s.org_id = step.org_id), 1) AS weight
) AS own
WHERE step.org_id IS NOT NULL AND step.org_id NOT IN (SELECT id FROM suspended) ORDER BY step.number
