-- The events with which these runs were claimed last.
SELECT r.id, claimed.payload FROM unnest(%(ids)s::uuid[]) AS r (id)
CROSS JOIN LATERAL (
    SELECT e.payload FROM run_events e
    WHERE e.run_id = r.id AND e.type IN ('run.started', 'run.resumed')
    ORDER BY e.seq DESC
    LIMIT 1
) claimed
