-- The threads of an end user of an org, or the private ones of a user, with those of their sub-runs:
-- those of sub-runs first. They are found from the root while it is there, and an erasure may be broken
-- off between two of its transactions. What a user has shared with the org stays, below a private
-- thread, too. A run that a request has created for somebody in the thread of another's sub-run is no
-- sub-run: the thread is not theirs.
WITH RECURSIVE own AS (
    SELECT id FROM threads WHERE org_id = %(org_id)s AND end_user_id = %(end_user_id)s
    UNION ALL
    SELECT id FROM threads WHERE is_private AND created_by_user_id = %(user_id)s
    UNION ALL
    SELECT t.id FROM runs r JOIN threads t ON t.id = r.thread_id
    WHERE r.org_id = %(org_id)s AND r.end_user_id = %(end_user_id)s
        AND r.parent_run_id = t.parent_run_id
), chosen AS (
    SELECT id FROM own
    UNION
    -- By the root, too: the retention may have deleted the runs between. By the runs of a thread that
    -- is not the root.
    SELECT below.id FROM chosen CROSS JOIN LATERAL (
        SELECT t.* FROM threads t WHERE t.root_thread_id = chosen.id
        UNION ALL
        SELECT t.* FROM runs r JOIN threads t ON t.parent_run_id = r.id WHERE r.thread_id = chosen.id
    ) AS below
    WHERE %(user_id)s::uuid IS NULL OR below.created_by_user_id = %(user_id)s
        AND (below.is_private OR below.deleted_at IS NOT NULL)
)
SELECT t.id FROM chosen JOIN threads t ON t.id = chosen.id ORDER BY t.parent_run_id IS NULL, t.id
