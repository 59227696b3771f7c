-- The threads of the sub-runs, of all depths, of runs from the first places of an end user in threads of
-- others on: what they do may repeat what that person said. Only those that have a truncation point, or
-- can still get one.
WITH RECURSIVE below AS (
    SELECT s.id, s.thread_id, s.ended_at
    FROM unnest(%(thread_ids)s::uuid[], %(positions)s::bigint[]) AS b (thread_id, position)
    JOIN runs r ON r.thread_id = b.thread_id AND r.position >= b.position
        AND NOT r.id = ANY(%(run_ids)s)
    JOIN runs s ON s.parent_run_id = r.id
    UNION
    SELECT s.id, s.thread_id, s.ended_at FROM below JOIN runs s ON s.parent_run_id = below.id
)
SELECT DISTINCT thread_id FROM below
WHERE NOT id = ANY(%(run_ids)s) AND (
    ended_at IS NULL
    OR thread_id = ANY(%(thread_ids)s)
    OR thread_id IN (SELECT thread_id FROM thread_contexts)
)
