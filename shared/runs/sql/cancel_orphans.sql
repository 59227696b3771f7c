-- Request the cancellation of all runs below runs that have ended: of one, or of any.
--
-- The index of active sub-runs has few rows. Rows are locked from the leaves to the root. Those of an org that
-- has left for another cell stay as its copy has them.
WITH RECURSIVE tree AS (
    SELECT c.id, 1 AS depth, coalesce(p.cancel_requested_by, c.created_by_user_id) AS user_id
    FROM runs c LEFT JOIN runs p ON p.id = c.parent_run_id
    WHERE c.parent_run_id IS NOT NULL
        AND (%(parent_run_id)s::uuid IS NULL OR c.parent_run_id = %(parent_run_id)s::uuid)
        AND c.state IN ('queued', 'executing', 'waiting', 'suspended')
        AND c.cancel_requested_at IS NULL
        AND (p.id IS NULL OR p.ended_at IS NOT NULL)
        AND c.org_id NOT IN (SELECT id FROM orgs WHERE suspended_at IS NOT NULL AND moved_to IS NOT NULL)
    UNION ALL
    SELECT c.id, tree.depth + 1, tree.user_id FROM tree JOIN runs c ON c.parent_run_id = tree.id
    WHERE c.state IN ('queued', 'executing', 'waiting', 'suspended')
), locked AS (
    SELECT r.id, tree.depth, tree.user_id FROM tree JOIN runs r ON r.id = tree.id
    WHERE r.ended_at IS NULL
    ORDER BY tree.depth DESC, r.id FOR NO KEY UPDATE OF r
)
UPDATE runs r SET cancel_requested_at = coalesce(r.cancel_requested_at, now()),
    cancel_requested_by = coalesce(r.cancel_requested_by, locked.user_id)
FROM locked WHERE r.id = locked.id
RETURNING r.id, locked.depth, r.state, r.owner, r.agent, r.cancel_requested_by,
    r.superseded_by IS NOT NULL OR r.cancel_reason IS NOT NULL AS has_cause
