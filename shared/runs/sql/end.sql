-- End runs: state, last events, message, usage and charge of each, all or nothing.
--
-- Only the claim whose fence is the row's ends a run, and an accepted cancel comes before every other
-- end. Committed events can be lost only when Postgres was restarted or failed over since the claim:
-- a run whose claim names another server does not end until its events were looked for.
-- A run for whose thread others may wait ends only `with_followers`: in a transaction that starts the
-- next one. Who waits has set the flag under the row's lock, so that it is seen here.
-- SKIP LOCKED: a row that another session has locked must not hold up the ends of the others. Rows
-- are locked in the order of their ids.
WITH ending AS (
    SELECT * FROM unnest(
        %(ids)s::uuid[],
        %(fences)s::bigint[],
        %(servers)s::timestamptz[],
        %(states)s::text[],
        %(stop_reasons)s::text[],
        %(json_outputs)s::boolean[],
        %(error_codes)s::text[],
        %(error_messages)s::text[],
        %(retryables)s::boolean[],
        %(steps)s::integer[],
        %(input_tokens)s::bigint[],
        %(output_tokens)s::bigint[],
        %(cache_read_tokens)s::bigint[],
        %(cache_write_tokens)s::bigint[],
        %(reasoning_tokens)s::bigint[],
        %(usage_sources)s::text[],
        %(costs)s::numeric[],
        %(message_ids)s::uuid[],
        %(contents)s::text[],
        %(entry_ids)s::uuid[],
        %(charges)s::bigint[]
    ) AS ending (
        id, fence, server, state, stop_reason, output_is_json, error_code, error_message,
        error_retryable, steps, input_tokens, output_tokens, cache_read_tokens,
        cache_write_tokens, reasoning_tokens, usage_source, cost_usd, message_id, content,
        entry_id, charge
    )
), used AS (
    SELECT unnest(%(used_by)s::uuid[]) AS run_id,
        unnest(%(used_route_ids)s::text[]) AS route_id,
        unnest(%(used_models)s::text[]) AS model,
        unnest(%(used_input_tokens)s::bigint[]) AS input_tokens,
        unnest(%(used_output_tokens)s::bigint[]) AS output_tokens,
        unnest(%(used_cache_read_tokens)s::bigint[]) AS cache_read_tokens,
        unnest(%(used_cache_write_tokens)s::bigint[]) AS cache_write_tokens,
        unnest(%(used_reasoning_tokens)s::bigint[]) AS reasoning_tokens,
        unnest(%(used_usage_sources)s::text[]) AS usage_source,
        unnest(%(used_costs)s::numeric[]) AS cost_usd
), event (run_id, seq, type, payload, prompts) AS (
    SELECT unnest(%(run_ids)s::uuid[]),
        unnest(%(seqs)s::bigint[]),
        unnest(%(types)s::text[]),
        unnest(%(payloads)s::text[]),
        unnest(%(prompts)s::bytea[])
), locked AS (
    SELECT id FROM runs r JOIN ending e USING (id)
    WHERE r.fence = e.fence AND r.state = 'executing'
        AND (r.cancel_requested_at IS NULL OR e.state = 'cancelled')
        AND (e.server IS NULL OR e.server = pg_postmaster_start_time())
        AND (%(with_followers)s OR NOT r.has_followers)
    ORDER BY id FOR NO KEY UPDATE OF r SKIP LOCKED
), ended AS (
    UPDATE runs r SET
        state = e.state,
        ended_at = clock_timestamp(),
        stop_reason = e.stop_reason,
        output_is_json = e.output_is_json,
        error_code = e.error_code,
        error_message = e.error_message,
        error_retryable = e.error_retryable,
        steps = e.steps,
        input_tokens = e.input_tokens,
        output_tokens = e.output_tokens,
        cache_read_tokens = e.cache_read_tokens,
        cache_write_tokens = e.cache_write_tokens,
        reasoning_tokens = e.reasoning_tokens,
        usage_source = e.usage_source,
        cost_usd = e.cost_usd
    FROM ending e JOIN locked USING (id)
    WHERE r.id = e.id
    RETURNING r.id AS run_id, org_id, thread_id, position, has_followers, superseded_at, created_by_user_id, api_key_id,
        persona_id, end_user_id, metadata, r.ended_at, e.state, message_id, content, entry_id, charge
), stored AS (
    INSERT INTO run_events (run_id, seq, type, payload, prompts)
    SELECT run_id, seq, type, payload, prompts FROM event JOIN ended USING (run_id)
    -- Stored by an earlier try, the response to which was lost.
    ON CONFLICT DO NOTHING
), answered AS (
    INSERT INTO messages (id, org_id, thread_id, run_id, position, role, content, partial)
    SELECT message_id, org_id, thread_id, run_id, position, 'assistant', content,
        state <> 'completed'
    FROM ended WHERE message_id IS NOT NULL
), recorded AS (
    INSERT INTO run_usage (run_id, route_id, org_id, user_id, api_key_id, persona_key, model,
        input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens,
        usage_source, cost_usd, ended_at, end_user_id, metadata, month)
    SELECT run_id, route_id, org_id, created_by_user_id, api_key_id,
        split_part(persona_id, '@', 1), model, input_tokens, output_tokens, cache_read_tokens,
        cache_write_tokens, reasoning_tokens, usage_source, cost_usd, ended_at, end_user_id,
        metadata,
        coalesce(
            (SELECT month FROM holds h WHERE h.run_id = ended.run_id),
            date_trunc('month', ended_at AT TIME ZONE 'UTC')::date
        )
    FROM ended JOIN used USING (run_id)
), charged AS (
    INSERT INTO ledger_entries (id, org_id, kind, run_id, debit_account, credit_account, credits)
    SELECT entry_id, org_id, 'usage', run_id, 'receivable', 'revenue', charge
    FROM ended WHERE charge > 0
)
SELECT run_id, thread_id, position, has_followers, superseded_at FROM ended
