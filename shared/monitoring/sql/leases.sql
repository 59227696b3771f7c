-- List the runs that a worker executes, newest first, with the lease of that worker and the last event
-- of the run.
SELECT r.id, r.org_id, r.created_at, r.started_at, r.persona_id, r.route_id, r.agent, r.attempt,
    r.crashes, r.cancel_requested_at, r.owner, w.hostname, w.pid,
    w.seen_at + make_interval(secs => %(lease)s) AS lease_expires_at,
    coalesce(w.seen_at > now() - make_interval(secs => %(lease)s), false) AS is_held,
    e.seq AS last_seq, e.type AS last_event, (e.payload::json ->> 'created_at')::timestamptz AS last_event_at
FROM runs r LEFT JOIN workers w ON w.id = r.owner
LEFT JOIN LATERAL (
    SELECT seq, type, payload FROM run_events WHERE run_id = r.id ORDER BY seq DESC LIMIT 1
) AS e ON true
WHERE r.state = 'executing'
    AND (%(worker_id)s::uuid IS NULL OR r.owner = %(worker_id)s)
    AND (%(before_at)s::timestamptz IS NULL OR (r.created_at, r.id) < (%(before_at)s, %(before_id)s::uuid))
ORDER BY r.created_at DESC, r.id DESC LIMIT %(limit)s
