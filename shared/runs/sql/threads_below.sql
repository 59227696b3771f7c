-- The threads of the sub-runs below a thread: all by their root, if it is that, and others by the runs
-- that are left. The runs of a thread at the top, which may be very many, are not read.
WITH RECURSIVE tree AS (
    SELECT id, parent_run_id IS NULL AS is_top FROM threads WHERE id = %(thread_id)s::uuid
    UNION
    SELECT below.id, false FROM tree CROSS JOIN LATERAL (
        SELECT t.id FROM threads t WHERE t.root_thread_id = tree.id
        UNION ALL
        SELECT t.id FROM runs r JOIN threads t ON t.parent_run_id = r.id
        WHERE r.thread_id = tree.id AND NOT tree.is_top
    ) AS below
)
SELECT id FROM tree WHERE id <> %(thread_id)s::uuid
