-- Find threads with pending runs that no end starts: the active run was deleted, not ended. One that a
-- request has started since looks for nobody at its end. Of each thread, the first run that is not to be
-- cancelled. Nothing starts for a suspended org.
-- A subquery per thread: a join is planned as if few active runs had followers, and reads all of them for each run.
SELECT * FROM (
    SELECT DISTINCT ON (r.thread_id) r.id, r.org_id, r.trace_id, r.thread_id
    FROM runs r
    WHERE r.state = 'pending' AND r.position >= 2251799813685248 AND r.ended_at IS NULL
        AND r.cancel_requested_at IS NULL
        AND r.org_id NOT IN (SELECT id FROM orgs WHERE suspended_at IS NOT NULL)
    ORDER BY r.thread_id, r.position
) AS first
WHERE (
    SELECT o.has_followers FROM runs o
    WHERE o.thread_id = first.thread_id
        AND o.state IN ('queued', 'executing', 'waiting', 'suspended')
) IS NOT TRUE
LIMIT %(most)s
