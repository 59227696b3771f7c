-- Delete events of deleted runs, of those whose time came first, each run's last ones first.
--
-- Returns the runs that were looked at. The scans end with the limits, which the planner knows:
-- neither many small runs nor a large one are read as a whole. With only_stored, notes of runs without
-- events are passed over. All but the last of the chosen runs
-- are deleted from their first event on, and that one is a range of the key. Not by ctid: that is
-- one row in each partition.
WITH forgotten AS MATERIALIZED (
    SELECT run_id, collect_at FROM forgotten_events n
    WHERE collect_at <= now() - make_interval(secs => %(readers_leave)s)
        -- Not EXISTS, which may be planned as a hash of all events.
        AND (NOT %(only_stored)s OR (SELECT true FROM run_events WHERE run_id = n.run_id LIMIT 1))
    ORDER BY collect_at LIMIT 100
), chosen AS MATERIALIZED (
    SELECT run_id, min(seq) AS first FROM (
        SELECT e.run_id, e.seq FROM forgotten f CROSS JOIN LATERAL (
            SELECT run_id, seq FROM run_events
            WHERE run_id = f.run_id ORDER BY seq DESC LIMIT 2000
        ) AS e LIMIT 2000
    ) AS last GROUP BY run_id
), part AS MATERIALIZED (
    SELECT run_id, first FROM chosen WHERE first > 1 LIMIT 1
), whole_ones AS (
    DELETE FROM run_events
    WHERE run_id = ANY (ARRAY(SELECT run_id FROM chosen WHERE first = 1))
), part_of_one AS (
    DELETE FROM run_events
    WHERE run_id = (SELECT run_id FROM part) AND seq >= (SELECT first FROM part)
)
SELECT run_id FROM forgotten
