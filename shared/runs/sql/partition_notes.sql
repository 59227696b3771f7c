-- The deleted runs whose events a partition has, if no run of its time is left and all were forgotten
-- long enough ago.
SELECT run_id FROM forgotten_events
WHERE run_id >= %(lower)s AND run_id < %(upper)s
    AND NOT EXISTS (SELECT FROM runs WHERE id >= %(lower)s AND id < %(upper)s)
    AND NOT EXISTS (
        SELECT FROM forgotten_events WHERE run_id >= %(lower)s AND run_id < %(upper)s
            AND forgotten_at > now() - make_interval(secs => %(readers_leave)s)
    )
LIMIT 5000
