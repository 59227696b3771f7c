-- Request the cancellation of all runs that are executed in private threads whose creator has left the org,
-- by each run's creator.
--
-- By the few runs that are executed: those that wait are found when they are executed, and the thread of
-- one that waits for it or for its time counts as deleted by then. Most runs are not private, as their own
-- row says. Rows are skipped, not waited for, if a worker is writing their events: the sweep comes back.
WITH executing AS (
    SELECT r.id FROM runs r JOIN threads t ON t.id = r.thread_id
    WHERE r.state = 'executing' AND r.cancel_requested_at IS NULL AND r.visible_to <> r.org_id
        AND t.is_private AND NOT EXISTS (
            SELECT FROM memberships m WHERE m.user_id = t.created_by_user_id AND m.org_id = t.org_id
        )
    ORDER BY r.id FOR NO KEY UPDATE OF r SKIP LOCKED
)
UPDATE runs r SET cancel_requested_at = now(), cancel_requested_by = r.created_by_user_id
FROM executing WHERE r.id = executing.id
RETURNING r.id, r.state, r.owner, r.agent, r.cancel_requested_by
