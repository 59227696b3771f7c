-- The threads of the sub-runs, of all depths, of runs that came after the first run or message of an end
-- user in a thread of others: what they do may repeat what that person said. Only those that have a
-- truncation point, or can still get one.
WITH RECURSIVE began AS (
    SELECT thread_id, min(position) AS position FROM (
        SELECT thread_id, position FROM runs WHERE id = ANY(%(run_ids)s)
        UNION ALL
        -- Until a run ends, what has steered it waits for a place, behind all runs.
        SELECT m.thread_id, least(m.position, r.position - 1)
        FROM messages m LEFT JOIN runs r ON r.id = m.steered_into WHERE m.id = ANY(%(message_ids)s)
    ) AS theirs GROUP BY thread_id
), below AS (
    SELECT s.id, s.thread_id, s.ended_at FROM began b
    JOIN runs r ON r.thread_id = b.thread_id AND r.position > b.position
        AND NOT r.id = ANY(%(run_ids)s)
    JOIN runs s ON s.parent_run_id = r.id
    UNION
    SELECT s.id, s.thread_id, s.ended_at FROM below JOIN runs s ON s.parent_run_id = below.id
)
SELECT DISTINCT thread_id FROM below
WHERE NOT id = ANY(%(run_ids)s) AND (
    ended_at IS NULL
    OR thread_id IN (SELECT thread_id FROM began UNION ALL SELECT thread_id FROM thread_contexts)
)
