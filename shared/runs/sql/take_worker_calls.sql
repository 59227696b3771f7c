-- Hand queued calls of a pool out to one of its workers, the oldest first.
--
-- With each comes which calls the worker should stop. No call is handed out whose time is over, and
-- none of a run that has ended or is being cancelled.
WITH taken AS (
    SELECT c.id FROM worker_calls c JOIN runs r ON r.id = c.run_id
    WHERE c.org_id = %(org_id)s AND c.pool = %(pool)s AND c.state = 'queued'
        AND c.tool = ANY(%(tools)s) AND c.deadline > now()
        AND r.ended_at IS NULL AND r.cancel_requested_at IS NULL
    ORDER BY c.id LIMIT %(limit)s
    FOR UPDATE OF c SKIP LOCKED
)
UPDATE worker_calls c
SET state = 'leased', fence = c.fence + 1, worker_id = %(worker_id)s, heard_at = NULL,
    lease_expires_at = now() + make_interval(secs => %(lease_seconds)s),
    deadline = now() + make_interval(secs => c.timeout_seconds)
FROM taken WHERE c.id = taken.id
RETURNING c.id, c.fence, c.tool, c.request, c.timeout_seconds, ARRAY(
    SELECT o.id::text FROM worker_calls o JOIN runs r ON r.id = o.run_id
    WHERE o.org_id = c.org_id AND o.pool = c.pool AND o.worker_id = %(worker_id)s
        AND o.state = 'leased' AND o.lease_expires_at > now() AND (
            o.cancel_requested_at IS NOT NULL OR r.cancel_requested_at IS NOT NULL
            OR r.ended_at IS NOT NULL
        )
) AS cancelled
