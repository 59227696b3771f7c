-- Go round the orgs that have queued runs, in the order of their ids, for so many steps after an org.
--
-- Each step is one look into an index, however long the queue is; with fewer orgs than steps there is
-- more than one round.
WITH RECURSIVE step AS (
    SELECT 0 AS number, %(after_org_id)s::uuid AS org_id
    UNION ALL
    SELECT number + 1, coalesce(
        (SELECT r.org_id FROM runs r
            WHERE r.state = 'queued' AND r.agent IS NULL AND r.org_id > step.org_id
            ORDER BY r.org_id LIMIT 1),
        (SELECT r.org_id FROM runs r
            WHERE r.state = 'queued' AND r.agent IS NULL
            ORDER BY r.org_id LIMIT 1)
    )
    FROM step WHERE number < %(steps)s AND (number = 0 OR org_id IS NOT NULL)
)
SELECT org_id FROM step WHERE number > 0 AND org_id IS NOT NULL ORDER BY number
