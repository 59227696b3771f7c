-- Count the runs that have ended, those of them that are beyond the retention, and the deleted runs
-- whose events are left.
SELECT %(days)s::int AS retention_days, r.ended_runs, r.runs_too_old, r.oldest_ended_at,
    f.deleted_runs_with_events, f.oldest_deleted_at
FROM (
    SELECT count(*) AS ended_runs,
        count(*) FILTER (WHERE ended_at < now() - make_interval(days => %(days)s)) AS runs_too_old,
        min(ended_at) AS oldest_ended_at
    FROM runs WHERE ended_at IS NOT NULL
) AS r, (
    SELECT count(*) AS deleted_runs_with_events, min(forgotten_at) AS oldest_deleted_at
    FROM forgotten_events
) AS f
