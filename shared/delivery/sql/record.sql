-- Record the results of attempts: delivered, pending again after a pause, or dead.
--
-- A 410 of an address that the endpoint had before is a failure like others. The last statement, which
-- may have waited for a change of the address, compares with the row that it has waited for.
-- The time in which the endpoint was disabled is no part of a delivery's: nothing was attempted then.
-- A success counts whichever attempt brings it, a failure only that of the last attempt. An endpoint
-- that responds again after failures gets at once what it has failed to take since they began. What it
-- refused before then keeps its pause: a message that it always refuses is not repeated after each
-- outage. Those that do so together share `most`; one for which more may wait counts as
-- failing until its next success. What another process is attempting at that moment may still fail
-- as before: it becomes due during its attempt, and is repeated after the first pause.
--
-- Later deliveries of the run are due no sooner than one that is pending again, or each claim would
-- read them in vain, and at once after one that is delivered or dead. By `state = 'pending'`
-- Postgres could look for few in the index of all that are pending.
WITH given AS (
    SELECT unnest((SELECT %(ids)s::uuid[])) AS id,
        unnest((SELECT %(attempts)s::integer[])) AS attempt,
        unnest((SELECT %(are_delivered)s::boolean[])) AS is_delivered,
        unnest((SELECT %(urls)s::text[])) AS url,
        unnest((SELECT %(statuses)s::integer[])) AS response_status,
        unnest((SELECT %(errors)s::text[])) AS error,
        unnest((SELECT %(pauses)s::float8[])) AS pause
), result AS (
    SELECT given.*, CASE WHEN response_status = 410 AND e.url = given.url THEN e.url END AS gone,
        e.disabled
    FROM given LEFT JOIN LATERAL (
        SELECT e.url, e.disabled_seconds - d.endpoint_disabled_seconds
            + coalesce(extract(epoch FROM now() - e.disabled_at), 0) AS disabled
        FROM webhook_deliveries d JOIN webhook_endpoints e ON e.id = d.endpoint_id
        WHERE d.id = given.id LIMIT 1
    ) AS e ON true
), recorded AS (
    UPDATE webhook_deliveries d SET
        state = CASE
            WHEN r.is_delivered THEN 'delivered'
            WHEN r.gone IS NOT NULL
                OR now() >= d.tried_since
                    + make_interval(secs => %(window_seconds)s + coalesce(r.disabled, 0)) THEN 'dead'
            ELSE 'pending' END,
        due_at = now() + make_interval(secs => CASE
            WHEN d.due_at > d.leased_until - %(lease)s
                THEN %(first_pause)s
            ELSE r.pause END),
        leased_until = NULL,
        tried_at = now(),
        response_status = r.response_status,
        error = r.error,
        delivered_at = CASE WHEN r.is_delivered THEN now() END
    FROM result r
    WHERE d.id = r.id AND d.state NOT IN ('delivered', 'dead')
        AND (r.is_delivered OR d.attempts = r.attempt)
    RETURNING d.id, d.endpoint_id, d.ordered_by, d.seq, d.state, d.due_at, r.is_delivered, r.gone
), followers AS (
    UPDATE webhook_deliveries f SET due_at = follower.due_at FROM (
        SELECT d.id, CASE WHEN r.state = 'pending' THEN r.due_at ELSE now() END AS due_at
        FROM recorded r JOIN webhook_deliveries d ON d.endpoint_id = r.endpoint_id
            AND d.ordered_by = r.ordered_by AND d.seq > r.seq AND d.state NOT IN ('delivered', 'dead')
        WHERE CASE WHEN r.state = 'pending' THEN d.due_at < r.due_at ELSE d.due_at > now() END
            AND d.id NOT IN (SELECT id FROM result)
        FOR NO KEY UPDATE OF d SKIP LOCKED
    ) AS follower
    WHERE f.id = follower.id
    RETURNING f.id
), by_endpoint AS (
    SELECT endpoint_id, bool_or(is_delivered) AS is_working, max(gone) AS gone
    FROM recorded GROUP BY endpoint_id
), working AS (
    -- The first of these attempts began before its failure, by less than a lease.
    SELECT e.id, e.failing_since - %(lease)s AS failing_from
    FROM webhook_endpoints e
    JOIN by_endpoint r ON r.endpoint_id = e.id AND r.is_working AND r.gone IS NULL
    WHERE e.failing_since < now() - %(steady)s
), share AS (
    SELECT greatest(1, %(most)s / greatest(1, count(*))) AS most FROM working
), hastened AS (
    UPDATE webhook_deliveries SET due_at = now() WHERE id IN (
        SELECT waiting.id FROM working w CROSS JOIN LATERAL (
            SELECT d.id FROM webhook_deliveries d
            WHERE d.endpoint_id = w.id AND d.state = 'pending' AND d.due_at > now()
                AND d.leased_until IS NULL
                AND (d.tried_since IS NULL OR d.tried_since >= w.failing_from)
                AND d.id NOT IN (SELECT id FROM result UNION ALL SELECT id FROM followers)
            LIMIT (SELECT most FROM share)
            FOR NO KEY UPDATE SKIP LOCKED
        ) AS waiting
    )
    RETURNING endpoint_id
), hastened_attempts AS (
    -- Attempts begin in the order of `due_at`: these are among the first.
    UPDATE webhook_deliveries SET due_at = now() WHERE id IN (
        SELECT d.id FROM working w CROSS JOIN LATERAL (
            SELECT id FROM webhook_deliveries
            WHERE endpoint_id = w.id AND state = 'pending' AND due_at <= now()
            ORDER BY due_at LIMIT 1000
        ) AS due JOIN webhook_deliveries d ON d.id = due.id
        WHERE d.leased_until > now() AND d.tried_since >= w.failing_from
            AND d.due_at <= d.leased_until - %(lease)s
            AND d.id NOT IN (SELECT id FROM result UNION ALL SELECT id FROM followers)
        FOR NO KEY UPDATE OF d SKIP LOCKED
    )
), unfinished AS (
    SELECT endpoint_id FROM hastened
    GROUP BY endpoint_id HAVING count(*) >= (SELECT most FROM share)
)
UPDATE webhook_endpoints e SET
    failing_since = CASE
        WHEN r.is_working AND e.id NOT IN (SELECT endpoint_id FROM unfinished) THEN NULL
        ELSE coalesce(e.failing_since, now()) END,
    is_enabled = e.is_enabled AND e.url IS DISTINCT FROM r.gone,
    disabled_reason = CASE WHEN e.url = r.gone THEN 'gone' ELSE e.disabled_reason END
FROM by_endpoint r
WHERE e.id = r.endpoint_id
    AND (e.url = r.gone OR r.is_working = (e.failing_since IS NOT NULL))
