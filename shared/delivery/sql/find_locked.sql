-- Find results whose record would wait for a locked row: of the delivery, or of its endpoint.
--
-- As the record locks them, without waiting. It changes the endpoint by a 410, by the first failure
-- and by the next success: other results do not wait for its row.
WITH given AS (
    SELECT unnest((SELECT %(ids)s::uuid[])) AS id,
        unnest((SELECT %(are_delivered)s::boolean[])) AS is_delivered,
        unnest((SELECT %(urls)s::text[])) AS url,
        unnest((SELECT %(statuses)s::integer[])) AS response_status
), needed AS (
    SELECT d.id, d.id AS row_id, 'webhook_deliveries' AS table_name
    FROM given JOIN webhook_deliveries d ON d.id = given.id
    UNION ALL
    SELECT d.id, e.id, 'webhook_endpoints'
    FROM given JOIN webhook_deliveries d ON d.id = given.id
    JOIN webhook_endpoints e ON e.id = d.endpoint_id
    WHERE given.is_delivered = (e.failing_since IS NOT NULL)
        OR (given.response_status = 410 AND given.url = e.url)
), free AS (
    SELECT id FROM webhook_deliveries WHERE id IN (SELECT row_id FROM needed)
    FOR NO KEY UPDATE SKIP LOCKED
), free_endpoints AS (
    SELECT id FROM webhook_endpoints WHERE id IN (SELECT row_id FROM needed)
    FOR NO KEY UPDATE SKIP LOCKED
)
SELECT id, row_id || ' of ' || table_name AS locked FROM needed
WHERE row_id NOT IN (SELECT id FROM free UNION ALL SELECT id FROM free_endpoints)
