-- Request the cancellation of one batch of the runs that have not ended in private threads of a user in an
-- org, by another user. Executing runs, which spend, come first, and then queued ones.
--
-- Rows are skipped, not waited for, if a worker is writing their events.
WITH unended AS (
    SELECT id FROM runs
    WHERE visible_to = %(user_id)s AND org_id = %(org_id)s AND ended_at IS NULL
        AND state IN ('queued', 'executing', 'waiting', 'suspended', 'pending', 'scheduled')
        AND cancel_requested_at IS NULL
    ORDER BY state <> 'executing', state <> 'queued', id LIMIT %(batch)s
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE runs r SET cancel_requested_at = now(), cancel_requested_by = %(by_user_id)s
FROM unended WHERE r.id = unended.id
RETURNING r.id, r.state, r.owner, r.agent, r.cancel_requested_by
