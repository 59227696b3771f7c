-- Sum up the usage of all orgs, or of one, on a day, UTC, all of whose intervals are summed up. A
-- run belongs to one interval, that of its end, so that their numbers of runs add up.
INSERT INTO usage_days (org_id, day, persona_key, api_key_id, model, runs, input_tokens,
    output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens, cost_usd, credits)
SELECT org_id, %(day)s::date, persona_key, api_key_id, model, sum(runs), sum(input_tokens),
    sum(output_tokens), sum(cache_read_tokens), sum(cache_write_tokens), sum(reasoning_tokens),
    sum(cost_usd), sum(credits)
FROM usage_intervals
WHERE began_at >= %(day)s::date::timestamp AT TIME ZONE 'UTC'
    AND began_at < (%(day)s::date + 1)::timestamp AT TIME ZONE 'UTC'
    AND (%(org_id)s::uuid IS NULL OR org_id = %(org_id)s::uuid)
GROUP BY org_id, persona_key, api_key_id, model
