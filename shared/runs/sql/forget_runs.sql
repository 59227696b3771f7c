-- Delete runs that ended before the retention, those that ended first; their messages stay.
--
-- Events in a partition that will be dropped are left to that: until collect_at, when it should be
-- gone, but for most_days at most, as it may be one of a longer retention. Of other runs a trigger
-- notes that their events are to be collected now.
WITH old AS (
    -- Literal: of a limit that it does not know Postgres thinks that it is a tenth of the table.
    SELECT id FROM runs WHERE ended_at < now() - make_interval(days => %(retention_days)s)
    ORDER BY ended_at LIMIT 100 FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM runs WHERE id IN (SELECT id FROM old) RETURNING org_id, id
), left_to_drop AS (
    INSERT INTO forgotten_events (run_id, collect_at)
    SELECT id, least(collect_at, now() + make_interval(days => %(most_days)s))
    FROM gone JOIN unnest(
        %(lowers)s::uuid[], %(uppers)s::uuid[], %(collect_ats)s::timestamptz[]
    ) AS part (lower_id, upper_id, collect_at) ON id >= lower_id AND id < upper_id
)
SELECT org_id, id FROM gone
