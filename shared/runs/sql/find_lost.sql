-- Find executing runs whose worker is lost, and lock them.
--
-- An owner has lost its runs when it was silent for a lease; or, sooner, when the kernel closed the
-- connection that holds its lock and it missed a heartbeat. Just after a restart of Postgres nobody
-- has a lock, so the locks mean nothing for the length of a lease.
--
-- A silence may be everybody's: Postgres was frozen, in recovery, read-only or unreachable. So an
-- owner is judged only while another worker is heard: by one that was heard all the time since, or
-- for a lease after it came back itself; or, if all that were there with the owner are silent, by
-- a worker that was started since then. A run that is being cancelled needs nobody to go on with it.
--
-- Agent workers reach Postgres through web processes: they lose their runs as others do, but what they
-- say of a silence does not count. They are promised that a silence is noticed within a lease, so that
-- theirs ends a look earlier.
--
-- An owner that was last seen before Postgres started could not renew: no crash of it.
WITH heard AS (
    SELECT started_at, greatest(started_at, back_at) AS heard_since FROM workers
    WHERE org_id IS NULL AND seen_at > now() - make_interval(secs => %(missed)s)
)
SELECT r.id, r.owner, coalesce(w.seen_at > pg_postmaster_start_time(), true) AS is_crash
FROM runs r LEFT JOIN workers w ON w.id = r.owner
WHERE r.state = 'executing' AND r.id <> ALL(%(left)s::uuid[]) AND (
    w.id IS NULL
    OR (
        w.seen_at < now() - make_interval(secs => %(missed)s)
        AND (
            w.seen_at < now() - make_interval(secs =>
                CASE WHEN w.org_id IS NULL THEN %(lease)s::float8 ELSE %(agents_lease)s::float8 END)
            OR (
                pg_postmaster_start_time() < now() - make_interval(secs => %(lease)s)
                AND w.lock_key <> 0
                AND NOT EXISTS (
                    SELECT FROM pg_locks l
                    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                    AND l.classid = (w.lock_key >> 32)::oid
                    AND l.objid = (w.lock_key & 4294967295)::oid
                )
            )
        )
        AND (
            r.cancel_requested_at IS NOT NULL
            OR (
                SELECT count(*) > 0 AND coalesce(
                    min(heard_since) FILTER (WHERE started_at <= w.seen_at)
                        <= greatest(w.seen_at, now() - make_interval(secs => %(lease)s)),
                    true
                ) FROM heard
            )
        )
    )
)
ORDER BY r.cancel_requested_at IS NULL, r.id LIMIT %(batch)s FOR UPDATE OF r SKIP LOCKED
