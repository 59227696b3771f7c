-- Request the cancellation of all active runs of API keys, by a user or else by each key's own.
--
-- The literal states let Postgres use the index of active runs. Rows are skipped, not waited for,
-- if a worker is writing their events: the sweep comes back to them.
WITH active AS (
    SELECT r.id, k.user_id FROM api_keys k JOIN runs r ON r.api_key_id = k.id
    WHERE k.id = ANY(%(key_ids)s) AND r.state IN ('queued', 'executing', 'waiting', 'suspended')
        AND r.cancel_requested_at IS NULL
    ORDER BY r.id FOR NO KEY UPDATE OF r SKIP LOCKED
)
UPDATE runs r
SET cancel_requested_at = now(),
    cancel_requested_by = coalesce(%(by_user_id)s::uuid, active.user_id)
FROM active WHERE r.id = active.id
RETURNING r.id, r.state, r.owner, r.cancel_requested_by
