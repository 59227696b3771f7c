-- Delete pending deliveries to endpoints that do not exist any more, at most `limit`.
--
-- Each of these endpoints costs every claim two looks into an index: the walk is that of claim.sql.
-- It ends as soon as it has found enough.
WITH RECURSIVE pending AS (
    (
        SELECT endpoint_id FROM webhook_deliveries WHERE state = 'pending'
        ORDER BY endpoint_id LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT d.endpoint_id FROM webhook_deliveries d
        WHERE d.state = 'pending' AND d.endpoint_id > pending.endpoint_id
        ORDER BY d.endpoint_id LIMIT 1
    )
    FROM pending WHERE pending.endpoint_id IS NOT NULL
), deleted AS MATERIALIZED (
    SELECT endpoint_id FROM pending
    -- OFFSET: looked up one by one. As a join, the whole walk would be made each time.
    WHERE NOT EXISTS (SELECT FROM webhook_endpoints e WHERE e.id = pending.endpoint_id OFFSET 0)
)
DELETE FROM webhook_deliveries WHERE id IN (
    SELECT one.id
    FROM deleted
    CROSS JOIN LATERAL (
        SELECT d.id FROM webhook_deliveries d
        WHERE d.endpoint_id = deleted.endpoint_id AND d.state = 'pending'
        ORDER BY d.due_at
        LIMIT %(limit)s
        FOR UPDATE SKIP LOCKED
    ) AS one
    LIMIT %(limit)s
)
