-- Request the cancellation of one batch of the runs of API keys that have not ended, by a user or
-- else by each key's own. Executing runs, which spend, come first, and then queued ones.
--
-- Found among those of the key's own org that have not ended. Rows are skipped, not waited for, if a
-- worker is writing their events: the sweep comes back to them. `found` counts those, too: a batch
-- that is full may have left others.
WITH of_keys AS (
    SELECT r.id, r.state, k.user_id FROM api_keys k
    JOIN runs r ON r.org_id = k.org_id AND r.api_key_id = k.id
    WHERE k.id = ANY(%(key_ids)s) AND r.ended_at IS NULL AND r.org_id IS NOT NULL
        AND r.cancel_requested_at IS NULL
), batch AS (
    SELECT id, user_id FROM of_keys
    ORDER BY state <> 'executing', state <> 'queued', id LIMIT %(batch)s
), unended AS (
    SELECT r.id, batch.user_id FROM batch JOIN runs r ON r.id = batch.id
    WHERE r.cancel_requested_at IS NULL AND r.ended_at IS NULL
    ORDER BY r.id FOR NO KEY UPDATE OF r SKIP LOCKED
)
UPDATE runs r
SET cancel_requested_at = now(),
    cancel_requested_by = coalesce(%(by_user_id)s::uuid, unended.user_id)
FROM unended WHERE r.id = unended.id
RETURNING r.id, r.state, r.owner, r.agent, r.cancel_requested_by,
    (SELECT count(*) FROM batch) AS found
