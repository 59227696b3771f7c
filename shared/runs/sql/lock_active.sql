-- Lock the active run of a thread, after all active sub-runs below it where these are to be cancelled.
--
-- Rows are locked from the leaves to the root. A run that has ended meanwhile is left out.
-- client_request_id: what the run waits for, as long as that is a result of a client, not of HTTP tools alone.
WITH RECURSIVE tree AS (
    SELECT id, 0 AS depth FROM runs
    WHERE thread_id = %(thread_id)s AND state IN ('queued', 'executing', 'waiting', 'suspended')
    UNION ALL
    SELECT c.id, tree.depth + 1 FROM tree JOIN runs c ON c.parent_run_id = tree.id
    WHERE %(with_sub_runs)s AND c.state IN ('queued', 'executing', 'waiting', 'suspended')
)
SELECT r.id, r.state, r.cancel_requested_at, r.superseded_by, r.created_by_user_id, r.agent,
    r.trace_id, r.position, tree.depth,
    CASE WHEN jsonb_path_exists(r.pending_input, '$.calls[*] ? (!(@.result_from == "http"))')
        THEN r.pending_input ->> 'request_id' END AS client_request_id
FROM tree JOIN runs r ON r.id = tree.id
WHERE r.ended_at IS NULL
ORDER BY tree.depth DESC, r.id FOR NO KEY UPDATE OF r
