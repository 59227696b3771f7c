-- Delete those of the next deliveries to an endpoint that name an end user, or are about the budget of
-- one; returns the place of the last one that was looked at.
--
-- strpos: most texts need not be read as JSON.
WITH page AS (
    SELECT id, created_at, type, data FROM webhook_deliveries
    WHERE endpoint_id = %(endpoint_id)s AND (created_at, id) > (%(created_at)s, %(id)s)
    ORDER BY created_at, id LIMIT %(limit)s
), gone AS (
    DELETE FROM webhook_deliveries WHERE id IN (
        SELECT id FROM page
        WHERE strpos(data, to_json(%(end_user_id)s::text)::text) > 0
            AND data::json ->> 'end_user_id' = %(end_user_id)s::text
        UNION ALL
        SELECT id FROM page
        WHERE type = %(budget_type)s AND data::json ->> 'scope' = %(budget_scope)s::text
    )
)
SELECT created_at, id FROM page ORDER BY created_at DESC, id DESC LIMIT 1
