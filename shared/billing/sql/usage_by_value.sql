-- The usage of an org's runs in a period by the value of a key of their metadata, or without a key
-- by end user; the most expensive first. No value: the runs without one.
SELECT CASE WHEN %(key)s::text IS NULL THEN end_user_id ELSE metadata ->> %(key)s END AS value,
    count(DISTINCT run_id) AS runs, sum(input_tokens)::bigint AS input_tokens,
    sum(output_tokens)::bigint AS output_tokens,
    sum(cache_read_tokens)::bigint AS cache_read_tokens,
    sum(cache_write_tokens)::bigint AS cache_write_tokens,
    sum(reasoning_tokens)::bigint AS reasoning_tokens, sum(cost_usd) AS cost_usd
FROM run_usage
WHERE org_id = %(org_id)s AND ended_at >= %(since)s AND ended_at < %(until)s
    AND (%(persona)s::text IS NULL OR persona_key = %(persona)s)
    AND (%(api_key_id)s::uuid IS NULL OR api_key_id = %(api_key_id)s)
    AND (%(end_user_id)s::text IS NULL OR end_user_id = %(end_user_id)s)
GROUP BY 1 ORDER BY sum(cost_usd) DESC, 1 LIMIT %(limit)s
