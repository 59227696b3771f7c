-- Request the cancellation of all runs of API keys that have not ended, by a user or else by each
-- key's own.
--
-- The literals let Postgres use the indexes of active and of waiting runs. Rows are skipped, not
-- waited for, if a worker is writing their events: the sweep comes back to them.
WITH of_keys AS (
    SELECT r.id, k.user_id FROM api_keys k JOIN runs r ON r.api_key_id = k.id
    WHERE k.id = ANY(%(key_ids)s) AND r.state IN ('queued', 'executing', 'waiting', 'suspended')
    UNION ALL
    SELECT r.id, k.user_id FROM api_keys k JOIN runs r ON r.api_key_id = k.id
    WHERE k.id = ANY(%(key_ids)s) AND r.position >= 2251799813685248 AND r.ended_at IS NULL
), unended AS (
    SELECT r.id, of_keys.user_id FROM of_keys JOIN runs r ON r.id = of_keys.id
    WHERE r.cancel_requested_at IS NULL AND r.ended_at IS NULL
    ORDER BY r.id FOR NO KEY UPDATE OF r SKIP LOCKED
)
UPDATE runs r
SET cancel_requested_at = now(),
    cancel_requested_by = coalesce(%(by_user_id)s::uuid, unended.user_id)
FROM unended WHERE r.id = unended.id
RETURNING r.id, r.state, r.owner, r.agent, r.cancel_requested_by
