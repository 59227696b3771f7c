-- Request the cancellation of all runs that are executed for suspended orgs, or for one of them, by a user
-- or else by each run's creator.
--
-- Rows are skipped, not waited for, if a worker is writing their events: the sweep comes back to them.
WITH executing AS (
    SELECT r.id FROM runs r JOIN orgs o ON o.id = r.org_id
    WHERE o.suspended_at IS NOT NULL AND r.state = 'executing' AND r.ended_at IS NULL
        AND r.cancel_requested_at IS NULL
        AND (%(org_id)s::uuid IS NULL OR o.id = %(org_id)s::uuid)
    ORDER BY r.id FOR NO KEY UPDATE OF r SKIP LOCKED
)
UPDATE runs r
SET cancel_requested_at = now(), cancel_reason = 'org_suspended',
    cancel_requested_by = coalesce(%(by_user_id)s::uuid, r.created_by_user_id)
FROM executing WHERE r.id = executing.id
RETURNING r.id, r.state, r.owner, r.agent, r.cancel_requested_by
