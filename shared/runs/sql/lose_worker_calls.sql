-- Take calls from workers that are lost: their lease has expired, or the connection of the heartbeat
-- that named them was closed and no other one has named them since. Since a call that is handed out
-- again has no `heard_at`, its id alone decides.
--
-- A silence may be everybody's, as in `find_lost.sql`: an expired lease counts only if one of the
-- workers of the service that are heard was heard ever since the call's worker was, or for a lease,
-- in which that had the time to come back.
--
-- A call that may be repeated is queued again, but not for ever; the outcome of any other is
-- unknown, and it is never handed out again.
WITH heard AS (
    SELECT min(greatest(started_at, back_at)) AS since FROM workers
    WHERE org_id IS NULL AND seen_at > now() - make_interval(secs => %(missed)s)
)
UPDATE worker_calls c
SET state = CASE WHEN c.idempotent AND c.fence < %(max_handouts)s AND c.cancel_requested_at IS NULL
        THEN 'queued' ELSE 'unknown' END,
    deadline = now() + make_interval(secs => c.timeout_seconds),
    ended_at = CASE WHEN c.idempotent AND c.fence < %(max_handouts)s AND c.cancel_requested_at IS NULL
        THEN NULL ELSE now() END
FROM heard
WHERE c.state = 'leased' AND c.id = ANY(%(ids)s) AND (
    c.heard_at <= %(heard_at)s::timestamptz
    OR c.lease_expires_at < now() AND heard.since <= greatest(
        -- It was handed out then.
        coalesce(c.heard_at, c.deadline - make_interval(secs => c.timeout_seconds)),
        now() - make_interval(secs => %(lease)s)
    )
)
RETURNING c.id, c.run_id, c.org_id, c.pool, c.tool, c.state, c.owner, c.worker_id
