-- Claim deliveries that are due, a few of each endpoint, and begin an attempt of each.
--
-- The walk finds the endpoints that have anything pending, each by one look into an index: an
-- endpoint with very many deliveries hides no other one. This process makes at most `most` attempts
-- of an endpoint at a time (one of those that fail), of which `busy` are already in progress.
-- Of an org it makes at most half as many as others leave it room for: receivers that are slow keep
-- those of no other org waiting, and an org with fewer attempts in progress comes first.
-- A delivery that this process attempts, or of which it holds the result, is not attempted again,
-- even if its lease is over.
-- A delivery has to wait for earlier ones of its run. By `state = 'pending'` Postgres could look for
-- these in the index of all that is pending for the endpoint, for each anew.
-- What a deleted thread had is not sent: by `EXISTS` Postgres could look for all deleted threads.
-- Those of an org that was copied to another installation are sent there.
WITH RECURSIVE pending AS (
    (
        SELECT endpoint_id FROM webhook_deliveries WHERE state = 'pending'
        ORDER BY endpoint_id LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT d.endpoint_id FROM webhook_deliveries d
        WHERE d.state = 'pending' AND d.endpoint_id > pending.endpoint_id
        ORDER BY d.endpoint_id LIMIT 1
    )
    FROM pending WHERE pending.endpoint_id IS NOT NULL
), busy AS (
    SELECT unnest(%(busy_ids)s::uuid[]) AS endpoint_id, unnest(%(busy)s::integer[]) AS busy
), busy_orgs AS (
    SELECT e.org_id, sum(busy.busy)::bigint AS busy
    FROM busy JOIN webhook_endpoints e ON e.id = busy.endpoint_id
    GROUP BY e.org_id
), candidate AS (
    SELECT one.id, one.due_at, %(capacity)s + coalesce(busy_orgs.busy, 0) AS room,
        coalesce(busy_orgs.busy, 0)
            + row_number() OVER (PARTITION BY e.org_id ORDER BY one.due_at) AS place
    FROM pending
    JOIN webhook_endpoints e ON e.id = pending.endpoint_id AND e.is_enabled
        AND (SELECT o.moved_to FROM orgs o WHERE o.id = e.org_id) IS NULL
    LEFT JOIN busy USING (endpoint_id)
    LEFT JOIN busy_orgs ON busy_orgs.org_id = e.org_id
    CROSS JOIN LATERAL (
        SELECT d.id, d.due_at FROM webhook_deliveries d
        WHERE d.endpoint_id = e.id AND d.state = 'pending' AND d.due_at <= now()
            AND (d.leased_until IS NULL OR d.leased_until < now())
            AND d.id <> ALL(%(held)s::uuid[])
            AND NOT EXISTS (
                SELECT FROM webhook_deliveries earlier
                WHERE earlier.endpoint_id = d.endpoint_id AND earlier.ordered_by = d.ordered_by
                    AND earlier.seq < d.seq AND earlier.state NOT IN ('delivered', 'dead')
            )
        ORDER BY d.due_at
        LIMIT greatest(
            0,
            CASE WHEN e.failing_since IS NULL THEN %(most)s ELSE 1 END - coalesce(busy.busy, 0)
        )
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS one
), due AS (
    SELECT id FROM candidate WHERE place <= greatest(1, room / 2)
    ORDER BY place, due_at LIMIT %(capacity)s
)
UPDATE webhook_deliveries d SET
    attempts = d.attempts + 1,
    tried_since = coalesce(d.tried_since, now()),
    endpoint_disabled_seconds = CASE
        WHEN d.tried_since IS NULL THEN e.disabled_seconds ELSE d.endpoint_disabled_seconds END,
    leased_until = now() + make_interval(secs => %(lease_seconds)s)
FROM due, webhook_endpoints e
WHERE d.id = due.id AND e.id = d.endpoint_id
RETURNING d.id, d.endpoint_id, d.org_id, d.type, d.created_at, d.data, d.attempts, e.url,
    e.secret_encrypted, e.former_secret_encrypted,
    (SELECT k.wrapped FROM org_keys k WHERE k.org_id = e.org_id) AS org_key,
    coalesce(e.former_secret_until > now(), false) AS has_former_secret,
    (
        SELECT t.deleted_at FROM threads t WHERE t.id = (d.data::json ->> 'thread_id')::uuid
    ) AS thread_deleted_at
