-- Delete those of the next deliveries to an endpoint that are of runs in these threads; returns the
-- place of the last one that was looked at.
WITH page AS (
    SELECT id, created_at, data FROM webhook_deliveries
    WHERE endpoint_id = %(endpoint_id)s AND (created_at, id) > (%(created_at)s, %(id)s)
    ORDER BY created_at, id LIMIT %(limit)s
), gone AS (
    DELETE FROM webhook_deliveries WHERE id IN (
        SELECT id FROM page WHERE data::json ->> 'thread_id' = ANY (%(thread_ids)s::text[])
    )
)
SELECT created_at, id FROM page ORDER BY created_at DESC, id DESC LIMIT 1
