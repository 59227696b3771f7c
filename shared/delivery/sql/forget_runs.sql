-- Delete the deliveries of runs, by which they are ordered: no index has `run_id`.
--
-- Run by run, and in order: else Postgres could read all deliveries to each of the endpoints.
DELETE FROM webhook_deliveries WHERE id IN (
    SELECT of_run.id
    FROM unnest(%(endpoint_ids)s::uuid[]) AS endpoint (id)
    CROSS JOIN unnest(%(run_ids)s::uuid[]) AS run (id)
    CROSS JOIN LATERAL (
        SELECT d.id FROM webhook_deliveries d
        WHERE d.endpoint_id = endpoint.id AND d.ordered_by = run.id
        ORDER BY d.seq
    ) AS of_run
)
