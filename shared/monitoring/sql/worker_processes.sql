-- List worker processes, those that are alive first, with the number of runs that each holds.
SELECT w.id, w.org_id, w.hostname, w.pid, w.started_at, w.seen_at,
    w.seen_at + make_interval(secs => %(lease)s) AS lease_expires_at,
    w.seen_at > now() - make_interval(
        secs => CASE WHEN w.org_id IS NULL THEN %(silence)s ELSE %(lease)s END
    ) AS is_alive,
    (SELECT count(*) FROM runs r WHERE r.owner = w.id AND r.state = 'executing') AS runs
FROM workers w
ORDER BY is_alive DESC, w.seen_at DESC, w.id LIMIT %(limit)s
