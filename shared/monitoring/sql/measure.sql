-- Count runs, workers and deliveries. By indexes of what is not over: an old database costs no more.
--
-- `crowd` is the class of an org by the number of its queued runs, so that a flood of one org differs
-- from a queue of many orgs. Queued runs of suspended orgs wait for no worker: none is counted. Nor
-- are deliveries that are not claimed: claim.sql of deliveries has the same conditions.
--
-- The first process after the interval measures, and others read what it has found. One that comes
-- meanwhile waits for the row and measures nothing. A time in the future is of a clock that was set
-- back since.
UPDATE measurements SET taken_at = now(), data = (
    WITH closed AS MATERIALIZED (
        SELECT id FROM orgs WHERE suspended_at IS NOT NULL
    ), queued AS (
        SELECT org_id, count(*) AS runs, min(queued_at) AS oldest_at FROM runs
        WHERE state = 'queued' AND agent IS NULL
            AND org_id NOT IN (SELECT id FROM closed)
        GROUP BY org_id
    ), crowds AS (
        SELECT CASE WHEN runs = 1 THEN '1' WHEN runs <= 10 THEN '2-10'
                WHEN runs <= 100 THEN '11-100' ELSE '101+' END AS crowd, runs, oldest_at
        FROM queued
    ), by_crowd AS (
        SELECT crowd, count(*) AS orgs, sum(runs) AS runs,
            extract(epoch FROM now() - min(oldest_at)) AS oldest_seconds
        FROM crowds GROUP BY crowd
    ), states AS (
        SELECT state, count(*) AS runs FROM runs
        WHERE state IN ('queued', 'executing', 'waiting', 'suspended')
            AND (state <> 'queued' OR org_id NOT IN (SELECT id FROM closed)) GROUP BY state
        UNION ALL
        SELECT state, count(*) FROM runs
        WHERE position >= 2251799813685248 AND ended_at IS NULL GROUP BY state
    ), alive AS (
        SELECT count(*) FILTER (WHERE org_id IS NULL AND seen_at > now() - make_interval(secs => %(silence)s))
                AS service,
            count(*) FILTER (WHERE org_id IS NOT NULL AND seen_at > now() - make_interval(secs => %(lease)s))
                AS agents
        FROM workers
    ), due AS (
        SELECT count(*) AS deliveries, coalesce(extract(epoch FROM now() - min(due_at)), 0) AS oldest_seconds
        FROM (
            SELECT d.due_at FROM webhook_endpoints e
            JOIN webhook_deliveries d ON d.endpoint_id = e.id AND d.state = 'pending' AND d.due_at < now()
            WHERE e.is_enabled AND (SELECT o.moved_to FROM orgs o WHERE o.id = e.org_id) IS NULL
                AND NOT EXISTS (
                    SELECT FROM webhook_deliveries earlier
                    WHERE earlier.endpoint_id = d.endpoint_id AND earlier.ordered_by = d.ordered_by
                        AND earlier.seq < d.seq AND earlier.state NOT IN ('delivered', 'dead')
                )
            LIMIT 100000
        ) AS late
    )
    SELECT json_build_object(
        'queue', coalesce((SELECT json_agg(by_crowd) FROM by_crowd), '[]'),
        'states', coalesce((SELECT json_object_agg(state, runs) FROM states), '{}'),
        'agent_queue', (
            SELECT count(*) FROM runs
            WHERE state = 'queued' AND agent IS NOT NULL AND org_id NOT IN (SELECT id FROM closed)
        ),
        'workers', (SELECT service FROM alive),
        'agent_workers', (SELECT agents FROM alive),
        'webhooks', (SELECT row_to_json(due) FROM due)
    )
)
WHERE taken_at NOT BETWEEN now() - make_interval(secs => %(interval)s)
    AND now() + make_interval(secs => %(interval)s)
