-- Sum up the usage of all orgs, or of one, in each ten minutes of a period that begins and ends with
-- such an interval.
--
-- A run's rows have one end, persona and key. Credits are counted by the run, each started one.
INSERT INTO usage_intervals (org_id, began_at, persona_key, api_key_id, model, runs, input_tokens,
    output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens, cost_usd, credits)
SELECT o.id, i.*
FROM orgs o CROSS JOIN LATERAL (
    WITH used AS (
        -- As date_bin() does, which Postgres 13 lacks.
        SELECT to_timestamp(floor(extract(epoch FROM ended_at) / 600) * 600) AS began_at, run_id,
            persona_key, api_key_id, model, input_tokens, output_tokens, cache_read_tokens,
            cache_write_tokens, reasoning_tokens, cost_usd
        FROM run_usage
        WHERE org_id = o.id AND ended_at >= %(since)s AND ended_at < %(until)s
    ), by_run AS (
        SELECT began_at, persona_key, api_key_id, sum(input_tokens) AS input_tokens,
            sum(output_tokens) AS output_tokens, sum(cache_read_tokens) AS cache_read_tokens,
            sum(cache_write_tokens) AS cache_write_tokens,
            sum(reasoning_tokens) AS reasoning_tokens, sum(cost_usd) AS cost_usd
        FROM used GROUP BY run_id, began_at, persona_key, api_key_id
    )
    SELECT began_at, persona_key, api_key_id, NULL, count(*), sum(input_tokens),
        sum(output_tokens), sum(cache_read_tokens), sum(cache_write_tokens),
        sum(reasoning_tokens), sum(cost_usd), sum(ceil(cost_usd * %(credits_per_usd)s))
    FROM by_run GROUP BY began_at, persona_key, api_key_id
    UNION ALL
    SELECT began_at, persona_key, api_key_id, model, count(DISTINCT run_id), sum(input_tokens),
        sum(output_tokens), sum(cache_read_tokens), sum(cache_write_tokens),
        sum(reasoning_tokens), sum(cost_usd), 0
    FROM used GROUP BY began_at, persona_key, api_key_id, model
) AS i
WHERE %(org_id)s::uuid IS NULL OR o.id = %(org_id)s::uuid
