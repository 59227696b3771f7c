-- Take calls from workers that are lost: their lease has expired, or the connection of the heartbeat
-- that named them was closed and no other one has named them since. Since a call that is handed out
-- again has no `heard_at`, its id alone decides.
--
-- A call that may be repeated is queued again, but not for ever; the outcome of any other is
-- unknown, and it is never handed out again.
UPDATE worker_calls c
SET state = CASE WHEN c.idempotent AND c.fence < %(max_handouts)s AND c.cancel_requested_at IS NULL
        THEN 'queued' ELSE 'unknown' END,
    deadline = now() + make_interval(secs => c.timeout_seconds),
    ended_at = CASE WHEN c.idempotent AND c.fence < %(max_handouts)s AND c.cancel_requested_at IS NULL
        THEN NULL ELSE now() END
WHERE c.state = 'leased' AND c.id = ANY(%(ids)s) AND (
    c.lease_expires_at < now() OR c.heard_at <= %(heard_at)s::timestamptz
)
RETURNING c.id, c.run_id, c.org_id, c.pool, c.tool, c.state, c.owner, c.worker_id
