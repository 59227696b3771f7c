-- Request the cancellation of runs by their ids or threads; returns how many have not ended. Workers
-- see it with their next heartbeat, and the sweep ends what no worker holds.
WITH unended AS (
    SELECT id FROM runs
    WHERE (id = ANY(%(run_ids)s) OR thread_id = ANY(%(thread_ids)s)) AND ended_at IS NULL
), requested AS (
    UPDATE runs r
    SET cancel_requested_at = now(), cancel_requested_by = r.created_by_user_id
    FROM unended u WHERE r.id = u.id AND r.cancel_requested_at IS NULL
)
SELECT count(*) FROM unended
