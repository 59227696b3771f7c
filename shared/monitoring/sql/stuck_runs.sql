-- List runs that should have moved on by now, each with what is wrong, the longest stuck first.
--
-- queued: no worker has taken it, though its org is not suspended. worker_lost: its worker's lease has expired, and the sweep has not
-- queued it again. silent: its worker is alive, but no event was written. cancelling: a cancel was
-- requested, and the run has not ended. overdue: the sweep should have ended or started it by now.
-- Runs of orgs that were copied to another cell do not end, and are neither of the two. The command that
-- copies ends those that are to be cancelled before it does so: if it was broken off, they are stuck.
WITH moved AS MATERIALIZED (
    SELECT id, copy_began_at FROM orgs WHERE suspended_at IS NOT NULL AND moved_to IS NOT NULL
), times AS (
    SELECT now() - make_interval(secs => %(queued)s) AS queued,
        now() - make_interval(secs => %(silent)s) AS silent,
        now() - make_interval(secs => %(lease)s) AS lease,
        now() - interval '30 seconds' AS sweep
), found AS (
    (SELECT r.id, 'queued' AS problem, r.queued_at AS since FROM runs r, times
    WHERE r.state = 'queued' AND r.queued_at < times.queued AND r.cancel_requested_at IS NULL
        AND r.org_id NOT IN (SELECT id FROM orgs WHERE suspended_at IS NOT NULL)
    ORDER BY r.queued_at LIMIT %(limit)s)
    UNION ALL
    (SELECT r.id, CASE WHEN w.seen_at > times.lease THEN 'silent' ELSE 'worker_lost' END,
        CASE WHEN w.seen_at > times.lease THEN e.at ELSE coalesce(w.seen_at, r.started_at) END
    FROM runs r CROSS JOIN times LEFT JOIN workers w ON w.id = r.owner
    LEFT JOIN LATERAL (
        SELECT (payload::json ->> 'created_at')::timestamptz AS at FROM run_events
        WHERE run_id = r.id ORDER BY seq DESC LIMIT 1
    ) AS e ON w.seen_at > times.lease AND r.started_at < times.silent
    WHERE r.state = 'executing' AND r.cancel_requested_at IS NULL
        AND (w.seen_at IS NULL OR w.seen_at <= times.lease OR e.at < times.silent)
    ORDER BY 3 LIMIT %(limit)s)
    UNION ALL
    (SELECT r.id, 'cancelling', r.cancel_requested_at FROM runs r, times
    WHERE r.ended_at IS NULL AND r.org_id IS NOT NULL AND r.cancel_requested_at < times.sweep
        AND r.org_id NOT IN (SELECT id FROM moved WHERE copy_began_at IS NULL)
    ORDER BY r.cancel_requested_at LIMIT %(limit)s)
    UNION ALL
    (SELECT r.id, 'overdue', r.input_expires_at FROM runs r, times
    WHERE r.state = 'waiting' AND r.input_expires_at < times.sweep AND r.cancel_requested_at IS NULL
        AND r.org_id NOT IN (SELECT id FROM moved)
    ORDER BY r.input_expires_at LIMIT %(limit)s)
    UNION ALL
    (SELECT r.id, 'overdue', coalesce(r.not_before, r.created_at) FROM runs r, times
    WHERE r.position >= 2251799813685248 AND r.ended_at IS NULL AND r.cancel_requested_at IS NULL
        AND coalesce(r.not_before, r.created_at) < times.sweep
        AND NOT EXISTS (
            SELECT FROM runs a WHERE a.thread_id = r.thread_id
            AND a.state IN ('queued', 'executing', 'waiting', 'suspended')
        )
    ORDER BY 3 LIMIT %(limit)s)
    UNION ALL
    (SELECT r.id, 'overdue', r.waiting_since FROM runs r, times
    WHERE r.ended_at IS NULL AND r.org_id IS NOT NULL AND r.state = 'suspended' AND r.attempt > 0
        AND r.waiting_since < times.sweep AND r.cancel_requested_at IS NULL
        AND NOT EXISTS (
            SELECT FROM runs c WHERE c.parent_run_id = r.id
            AND c.state IN ('queued', 'executing', 'waiting', 'suspended')
        )
    ORDER BY r.waiting_since LIMIT %(limit)s)
)
SELECT r.id, f.problem, f.since, r.org_id, o.name AS org_name, r.state, r.created_at, r.persona_id,
    r.route_id, r.agent, r.attempt, r.crashes, r.owner
FROM found f JOIN runs r ON r.id = f.id JOIN orgs o ON o.id = r.org_id
ORDER BY f.since, r.id LIMIT %(limit)s
