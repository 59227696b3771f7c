-- The runs whose prompts, summaries in events and checkpoints may have what an end user said in threads
-- of others: those from its first places in these threads on, with their sub-runs. Only those that still
-- have one of these. With OFFSET, Postgres 13 considers no plan that reads the events of all runs.
WITH RECURSIVE later AS (
    SELECT r.id FROM unnest(%(thread_ids)s::uuid[], %(positions)s::bigint[]) AS b (thread_id, position)
    JOIN runs r ON r.thread_id = b.thread_id AND r.position >= b.position
    UNION
    SELECT r.id FROM later JOIN runs r ON r.parent_run_id = later.id
)
SELECT id FROM later WHERE NOT id = ANY(%(run_ids)s) AND (
    EXISTS (SELECT FROM agent_checkpoints c WHERE c.run_id = later.id)
    OR EXISTS (
        SELECT FROM run_events e WHERE e.run_id = later.id AND (
            e.prompts IS NOT NULL
            OR e.type = 'context.compacted' AND e.payload::json #> '{data,summary}' IS NOT NULL
        ) OFFSET 0
    )
) ORDER BY id
