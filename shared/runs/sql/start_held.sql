-- Queue the sub-run of a run that has waited longest for its turn, if there is one.
--
-- SKIP LOCKED: it is being cancelled.
UPDATE runs SET state = 'queued', queued_at = clock_timestamp()
WHERE id = (
    SELECT id FROM runs
    WHERE parent_run_id = %(parent_run_id)s AND state = 'suspended' AND attempt = 0
        AND cancel_requested_at IS NULL
    ORDER BY created_at, id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
)
RETURNING id, org_id, agent
