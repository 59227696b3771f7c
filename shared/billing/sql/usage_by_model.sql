-- The usage of an org's runs in a period by model, the most expensive first; see usage_by_day.sql.
--
-- A run that has called two models counts as one of each.
WITH used AS (
    SELECT run_usage.*
    FROM unnest(%(sinces)s::timestamptz[], %(untils)s::timestamptz[]) AS part (since, until)
    JOIN run_usage
        ON org_id = %(org_id)s AND ended_at >= part.since AND ended_at < part.until
        AND (%(persona)s::text IS NULL OR persona_key = %(persona)s)
        AND (%(api_key_id)s::uuid IS NULL OR api_key_id = %(api_key_id)s)
        AND (%(end_user_id)s::text IS NULL OR end_user_id = %(end_user_id)s)
), parts AS (
    SELECT model, count(DISTINCT run_id) AS runs, sum(input_tokens) AS input_tokens,
        sum(output_tokens) AS output_tokens, sum(cache_read_tokens) AS cache_read_tokens,
        sum(cache_write_tokens) AS cache_write_tokens, sum(reasoning_tokens) AS reasoning_tokens,
        sum(cost_usd) AS cost_usd
    FROM used GROUP BY model
    UNION ALL
    SELECT model, runs, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens,
        reasoning_tokens, cost_usd
    FROM usage_intervals
    WHERE org_id = %(org_id)s AND began_at >= %(first_interval)s AND began_at < %(end_interval)s
        AND model IS NOT NULL
        AND (%(persona)s::text IS NULL OR persona_key = %(persona)s)
        AND (%(api_key_id)s::uuid IS NULL OR api_key_id = %(api_key_id)s)
    UNION ALL
    SELECT model, runs, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens,
        reasoning_tokens, cost_usd
    FROM usage_days
    WHERE org_id = %(org_id)s AND day >= %(first_day)s AND day < %(end_day)s
        AND model IS NOT NULL
        AND (%(persona)s::text IS NULL OR persona_key = %(persona)s)
        AND (%(api_key_id)s::uuid IS NULL OR api_key_id = %(api_key_id)s)
)
SELECT model, sum(runs)::bigint AS runs, sum(input_tokens)::bigint AS input_tokens,
    sum(output_tokens)::bigint AS output_tokens,
    sum(cache_read_tokens)::bigint AS cache_read_tokens,
    sum(cache_write_tokens)::bigint AS cache_write_tokens,
    sum(reasoning_tokens)::bigint AS reasoning_tokens, sum(cost_usd) AS cost_usd
FROM parts GROUP BY model ORDER BY sum(cost_usd) DESC, model
