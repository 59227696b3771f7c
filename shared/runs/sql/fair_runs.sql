-- Go round the end users with queued runs of each of these orgs, for `steps` steps after an end user,
-- and find for each step a run: the oldest ones of each. Runs without an end user are one end user's.
--
-- A thread has one queued run at most, and its next one is queued later: the oldest first goes round
-- the threads. The runs that were asked for come first, without a step, as far as they are queued.
WITH wanted AS (
    SELECT unnest((SELECT %(org_ids)s::uuid[])) AS org_id,
        unnest((SELECT %(after_end_users)s::text[])) AS after_end_user,
        unnest((SELECT %(steps)s::integer[])) AS steps
)
SELECT NULL::integer AS number, own.org_id, coalesce(own.end_user_id, '') AS end_user, own.id
FROM runs own
WHERE own.id = ANY((SELECT %(own_ids)s::uuid[])::uuid[])
    AND own.state IS NOT DISTINCT FROM 'queued'
UNION ALL
SELECT found.number::integer, wanted.org_id, users.end_user, found.id
FROM wanted CROSS JOIN LATERAL (
    WITH RECURSIVE step AS (
        SELECT 0 AS number, wanted.after_end_user AS end_user
        UNION ALL
        SELECT number + 1, coalesce(
            (SELECT coalesce(r.end_user_id, '') FROM runs r
                WHERE r.state = 'queued' AND r.agent IS NULL AND r.org_id = wanted.org_id
                    AND coalesce(r.end_user_id, '') > step.end_user
                ORDER BY coalesce(r.end_user_id, '') LIMIT 1),
            (SELECT coalesce(r.end_user_id, '') FROM runs r
                WHERE r.state = 'queued' AND r.agent IS NULL AND r.org_id = wanted.org_id
                ORDER BY coalesce(r.end_user_id, '') LIMIT 1)
        )
        FROM step WHERE number < wanted.steps AND (number = 0 OR end_user IS NOT NULL)
    )
    SELECT end_user, array_agg(number ORDER BY number) AS numbers FROM step
    WHERE number > 0 AND end_user IS NOT NULL GROUP BY end_user
) AS users CROSS JOIN LATERAL (
    SELECT users.numbers[row_number() OVER (ORDER BY oldest.queued_at, oldest.id)] AS number,
        oldest.id
    FROM (
        SELECT r.id, r.queued_at FROM runs r
        WHERE r.state = 'queued' AND r.agent IS NULL AND r.org_id = wanted.org_id
            AND coalesce(r.end_user_id, '') = users.end_user
            AND r.cancel_requested_at IS NULL
            AND r.id <> ALL((SELECT %(taken_ids)s::uuid[])::uuid[])
        ORDER BY r.queued_at LIMIT cardinality(users.numbers)
    ) AS oldest
) AS found
ORDER BY number NULLS FIRST
