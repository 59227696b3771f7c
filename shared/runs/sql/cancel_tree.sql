-- Request the cancellation of a run and of all sub-runs below it that have not ended, for an actor
-- who may write the run. With an entry of the audit log: only if a worker holds the run, so that the
-- request is all there is to do, and together with the entry; otherwise nothing is changed.
--
-- Rows are locked from the leaves to the root, as at the end of a sub-run, so that nobody waits in a
-- circle, and before the head of the audit log. Who sees a thread is said in
-- shared/threads/visibility.py.
WITH RECURSIVE tree AS (
    SELECT r.id, 0 AS depth FROM runs r JOIN threads t ON t.id = r.thread_id
    WHERE r.id = %(run_id)s AND r.ended_at IS NULL
        AND t.org_id = %(org_id)s AND (%(also_deleted)s OR t.deleted_at IS NULL)
        AND (NOT t.is_private OR t.created_by_user_id = %(user_id)s)
        AND (%(seen_end_user_id)s::text IS NULL OR t.end_user_id = %(seen_end_user_id)s)
        AND (%(seen_thread_id)s::uuid IS NULL OR t.id = %(seen_thread_id)s)
        AND (%(writes_all)s OR r.created_by_user_id = %(writer_id)s)
    UNION ALL
    SELECT c.id, tree.depth + 1 FROM tree JOIN runs c ON c.parent_run_id = tree.id
    WHERE c.state IN ('queued', 'executing', 'waiting', 'suspended')
), locked AS (
    SELECT r.id, tree.depth, r.state FROM tree JOIN runs r ON r.id = tree.id
    WHERE r.ended_at IS NULL
    ORDER BY tree.depth DESC, r.id FOR NO KEY UPDATE OF r
)
UPDATE runs r SET cancel_requested_at = coalesce(r.cancel_requested_at, now()),
    cancel_requested_by = coalesce(r.cancel_requested_by, %(writer_id)s)
FROM locked WHERE r.id = locked.id
    -- As it is under the lock, after all of them. Not above: Postgres might then look for the run
    -- among all that are executing.
    AND (%(entry)s::jsonb IS NULL
        OR (SELECT state FROM locked WHERE depth = 0) = 'executing')
RETURNING r.id, locked.depth, r.state, r.owner, r.agent, r.cancel_requested_by,
    r.superseded_by IS NOT NULL OR r.cancel_reason IS NOT NULL AS has_cause,
    CASE WHEN locked.depth = 0 AND %(entry)s::jsonb IS NOT NULL
        THEN append_audit_entry(%(entry)s::jsonb, %(pieces)s::text[]) END
