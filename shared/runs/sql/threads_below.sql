-- The threads of the sub-runs below a thread: all by their root, if it is that, and others by the runs
-- that are left.
WITH RECURSIVE tree AS (
    SELECT %(thread_id)s::uuid AS id
    UNION
    SELECT below.id FROM tree CROSS JOIN LATERAL (
        SELECT t.id FROM threads t WHERE t.root_thread_id = tree.id
        UNION ALL
        SELECT t.id FROM runs r JOIN threads t ON t.parent_run_id = r.id WHERE r.thread_id = tree.id
    ) AS below
)
SELECT id FROM tree WHERE id <> %(thread_id)s::uuid
