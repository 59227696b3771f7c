-- Request the cancellation of runs by their ids or threads; returns the orgs in which some have
-- not ended. Workers see it with their next heartbeat, and the sweep ends what no worker holds. Runs that
-- an org has left behind for another cell stay as they are, and do not count: nothing ends them.
--
-- Rows are locked in the order in which runs are ended: scheduled ones, active ones from the leaves of a
-- tree to its root, and those that wait for their thread in their order. This prevents deadlocks.
WITH unended AS (
    SELECT id, org_id FROM runs
    WHERE (id = ANY(%(run_ids)s) OR thread_id = ANY(%(thread_ids)s)) AND ended_at IS NULL
        AND org_id NOT IN (
            SELECT o.id FROM orgs o CROSS JOIN installation i
            WHERE o.suspended_at IS NOT NULL AND o.copy_began_at IS NULL AND o.moved_to <> i.epoch
        )
), locked AS (
    SELECT r.id FROM unended JOIN runs r USING (id) LEFT JOIN sub_runs s ON s.run_id = r.id
    WHERE r.cancel_requested_at IS NULL AND r.ended_at IS NULL
    ORDER BY r.state <> 'scheduled', r.position >= 2251799813685248, coalesce(s.depth, 0) DESC,
        CASE WHEN r.position >= 2251799813685248 THEN r.position END, r.id
    FOR NO KEY UPDATE OF r
), requested AS (
    UPDATE runs r
    SET cancel_requested_at = now(), cancel_requested_by = r.created_by_user_id
    FROM locked WHERE r.id = locked.id
)
SELECT DISTINCT org_id FROM unended ORDER BY org_id
