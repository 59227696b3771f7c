-- Let the events of deleted runs wait for the drop of their partition for most_days from now on, where
-- they would wait longer: the partition has the days of a longer retention.
UPDATE forgotten_events SET collect_at = now() + make_interval(days => %(most_days)s)
WHERE run_id = ANY (ARRAY(
    SELECT run_id FROM forgotten_events
    WHERE collect_at > now() + make_interval(days => %(most_days)s)
    LIMIT %(most)s
))
