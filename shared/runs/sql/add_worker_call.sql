-- Queue a tool call for a pool of workers, or take over the one that an earlier attempt has queued.
--
-- Nothing is written by an attempt that no longer holds the run.
INSERT INTO worker_calls (
    id, run_id, tool_call_id, org_id, pool, tool, request, idempotent, timeout_seconds, owner,
    deadline
)
SELECT %(id)s, r.id, %(tool_call_id)s, r.org_id, %(pool)s, %(tool)s, %(request)s,
    %(idempotent)s, %(timeout_seconds)s, r.owner,
    now() + make_interval(secs => %(timeout_seconds)s)
FROM runs r WHERE r.id = %(run_id)s AND r.fence = %(fence)s AND r.state = 'executing'
FOR SHARE
ON CONFLICT (run_id, tool_call_id) DO UPDATE SET owner = excluded.owner
RETURNING id, state, fence
