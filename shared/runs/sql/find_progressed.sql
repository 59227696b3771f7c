-- Which of these runs have finished a step since they were last claimed.
SELECT r.id FROM unnest(%(ids)s::uuid[]) AS r (id)
CROSS JOIN LATERAL (
    -- With a limit this stays a look into each run's own events.
    SELECT FROM run_events e
    WHERE e.run_id = r.id AND e.type = ANY(%(steps)s)
    AND e.seq > (
        SELECT max(c.seq) FROM run_events c
        WHERE c.run_id = r.id AND c.type IN ('run.started', 'run.resumed')
    )
    LIMIT 1
) step
