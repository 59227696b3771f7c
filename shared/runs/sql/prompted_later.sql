-- The runs whose prompts, summaries in events and checkpoints may have what an end user said in threads
-- of others: those after the first run or message of theirs in such a thread, with their sub-runs. Only
-- those that still have one of these.
WITH RECURSIVE began AS (
    SELECT thread_id, min(position) AS position FROM (
        SELECT thread_id, position FROM runs WHERE id = ANY(%(run_ids)s)
        UNION ALL
        -- Until a run ends, what has steered it waits for a place, behind all runs.
        SELECT m.thread_id, least(m.position, r.position - 1)
        FROM messages m LEFT JOIN runs r ON r.id = m.steered_into WHERE m.id = ANY(%(message_ids)s)
    ) AS theirs GROUP BY thread_id
), later AS (
    SELECT r.id FROM began b JOIN runs r ON r.thread_id = b.thread_id AND r.position > b.position
    UNION
    SELECT r.id FROM later JOIN runs r ON r.parent_run_id = later.id
)
SELECT id FROM later WHERE NOT id = ANY(%(run_ids)s) AND (
    EXISTS (SELECT FROM agent_checkpoints c WHERE c.run_id = later.id)
    OR EXISTS (
        SELECT FROM run_events e WHERE e.run_id = later.id AND (
            e.prompts IS NOT NULL
            OR e.type = 'context.compacted' AND e.payload::json #> '{data,summary}' IS NOT NULL
        )
    )
) ORDER BY id
