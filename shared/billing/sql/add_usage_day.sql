-- Sum up the usage of all orgs, or of one, on a day, UTC.
--
-- A run's rows have one end, persona and key. Credits are counted by the run, each started one.
INSERT INTO usage_days (org_id, day, persona_key, api_key_id, model, runs, input_tokens,
    output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens, cost_usd, credits)
SELECT o.id, %(day)s, d.*
FROM orgs o CROSS JOIN LATERAL (
    WITH used AS (
        SELECT * FROM run_usage WHERE org_id = o.id
            AND ended_at >= %(day)s::timestamp AT TIME ZONE 'UTC'
            AND ended_at < (%(day)s::date + 1)::timestamp AT TIME ZONE 'UTC'
    ), by_run AS (
        SELECT persona_key, api_key_id, sum(input_tokens) AS input_tokens,
            sum(output_tokens) AS output_tokens, sum(cache_read_tokens) AS cache_read_tokens,
            sum(cache_write_tokens) AS cache_write_tokens,
            sum(reasoning_tokens) AS reasoning_tokens, sum(cost_usd) AS cost_usd
        FROM used GROUP BY run_id, persona_key, api_key_id
    )
    SELECT persona_key, api_key_id, NULL, count(*), sum(input_tokens), sum(output_tokens),
        sum(cache_read_tokens), sum(cache_write_tokens), sum(reasoning_tokens), sum(cost_usd),
        sum(ceil(cost_usd * %(credits_per_usd)s))
    FROM by_run GROUP BY persona_key, api_key_id
    UNION ALL
    SELECT persona_key, api_key_id, model, count(DISTINCT run_id), sum(input_tokens),
        sum(output_tokens), sum(cache_read_tokens), sum(cache_write_tokens),
        sum(reasoning_tokens), sum(cost_usd), 0
    FROM used GROUP BY persona_key, api_key_id, model
) AS d
WHERE %(org_id)s::uuid IS NULL OR o.id = %(org_id)s::uuid
