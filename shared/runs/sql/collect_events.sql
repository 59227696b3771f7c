-- Delete events of deleted runs, of those that were forgotten first, each run's last ones first.
--
-- Returns the runs that were looked at. The scans end with the limits, which the planner knows:
-- neither many small runs nor a large one are read as a whole.
WITH forgotten AS MATERIALIZED (
    SELECT run_id, forgotten_at FROM forgotten_runs
    WHERE forgotten_at <= now() - make_interval(secs => %(readers_leave)s)
    ORDER BY forgotten_at LIMIT 100
), collected AS (
    DELETE FROM run_events WHERE ctid = ANY(ARRAY(
        SELECT e.place FROM forgotten f CROSS JOIN LATERAL (
            SELECT ctid AS place FROM run_events
            WHERE run_id = f.run_id ORDER BY seq DESC LIMIT 2000
        ) AS e LIMIT 2000
    ))
)
SELECT run_id FROM forgotten
