-- The first run after a position of each thread, with its last event, and the runs that it replaces
-- by a retry or a rollback.
SELECT wanted.thread_id, wanted.after, r.id, r.position, r.persona_id, r.route_id, r.model,
    r.created_by_user_id, r.created_at, r.ended_at,
    (SELECT coalesce(max(e.seq), 0) FROM run_events e WHERE e.run_id = r.id) AS last_seq,
    -- They are the last ones before it, and a retry supersedes all runs of its round together.
    ARRAY(
        SELECT s.id FROM (
            SELECT p.id, p.position, p.superseded_at,
                first_value(p.superseded_at) OVER (ORDER BY p.position DESC) AS at
            FROM runs p WHERE p.thread_id = r.thread_id AND p.position < r.position
            ORDER BY p.position DESC LIMIT 50
        ) AS s
        WHERE s.superseded_at = s.at AND s.superseded_at IS DISTINCT FROM r.superseded_at
        ORDER BY s.position
    ) AS supersedes
FROM unnest(%(thread_ids)s::uuid[], %(after)s::bigint[]) AS wanted (thread_id, after)
CROSS JOIN LATERAL (
    SELECT * FROM runs
    WHERE thread_id = wanted.thread_id AND position > wanted.after
        -- From here on are the positions of runs that wait for their thread.
        AND position < 2251799813685248
    ORDER BY position LIMIT 1
) AS r
