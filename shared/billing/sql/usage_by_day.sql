-- The usage of an org's runs in a period: of each day (UTC), and of all in the row without a day.
--
-- `usage_days` has the whole days that are summed up, and `usage_intervals` the whole intervals of
-- the days after them; the parts of the period that neither has are read run by run. All rows of a
-- run have the same end. Credits are counted by the run, each started one.
WITH used AS (
    SELECT run_usage.*
    FROM unnest(%(sinces)s::timestamptz[], %(untils)s::timestamptz[]) AS part (since, until)
    JOIN run_usage
        ON org_id = %(org_id)s AND ended_at >= part.since AND ended_at < part.until
        AND (%(persona)s::text IS NULL OR persona_key = %(persona)s)
        AND (%(api_key_id)s::uuid IS NULL OR api_key_id = %(api_key_id)s)
        AND (%(end_user_id)s::text IS NULL OR end_user_id = %(end_user_id)s)
), parts AS (
    SELECT (ended_at AT TIME ZONE 'UTC')::date AS day, 1 AS runs,
        sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens,
        sum(cache_read_tokens) AS cache_read_tokens, sum(cache_write_tokens) AS cache_write_tokens,
        sum(reasoning_tokens) AS reasoning_tokens, sum(cost_usd) AS cost_usd,
        ceil(sum(cost_usd) * %(credits_per_usd)s) AS credits
    FROM used GROUP BY run_id, ended_at
    UNION ALL
    SELECT (began_at AT TIME ZONE 'UTC')::date, runs, input_tokens, output_tokens,
        cache_read_tokens, cache_write_tokens, reasoning_tokens, cost_usd, credits
    FROM usage_intervals
    WHERE org_id = %(org_id)s AND began_at >= %(first_interval)s AND began_at < %(end_interval)s
        AND model IS NULL
        AND (%(persona)s::text IS NULL OR persona_key = %(persona)s)
        AND (%(api_key_id)s::uuid IS NULL OR api_key_id = %(api_key_id)s)
    UNION ALL
    SELECT day, runs, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens,
        reasoning_tokens, cost_usd, credits
    FROM usage_days
    WHERE org_id = %(org_id)s AND day >= %(first_day)s AND day < %(end_day)s AND model IS NULL
        AND (%(persona)s::text IS NULL OR persona_key = %(persona)s)
        AND (%(api_key_id)s::uuid IS NULL OR api_key_id = %(api_key_id)s)
)
SELECT day, coalesce(sum(runs), 0)::bigint AS runs,
    coalesce(sum(input_tokens), 0)::bigint AS input_tokens,
    coalesce(sum(output_tokens), 0)::bigint AS output_tokens,
    coalesce(sum(cache_read_tokens), 0)::bigint AS cache_read_tokens,
    coalesce(sum(cache_write_tokens), 0)::bigint AS cache_write_tokens,
    coalesce(sum(reasoning_tokens), 0)::bigint AS reasoning_tokens,
    coalesce(sum(cost_usd), 0) AS cost_usd, coalesce(sum(credits), 0)::bigint AS credits
FROM parts GROUP BY GROUPING SETS ((day), ())
