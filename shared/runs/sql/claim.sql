-- Claim queued runs for a worker: those that are new (are_new), or those that resume.
--
-- SKIP LOCKED: another session is claiming or ending the run. If it stays queued, a worker finds
-- it later. Rows are locked in the order of their ids.
-- IS NOT DISTINCT FROM deliberately defeats the partial index on queued runs: a generic plan that
-- was cached while the index was small would scan all of it.
-- The sub-selects: see create.sql.
-- A worker renews its lease before it claims: a run claimed during a silence would be lost at once,
-- and count two lost workers for one silence.
WITH wanted AS (
    SELECT unnest((SELECT %(run_ids)s::uuid[])) AS id,
        unnest((SELECT %(may_be_suspect)s::boolean[])) AS may_be_suspect
), free AS (
    SELECT r.id FROM wanted w JOIN runs r ON r.id = w.id
    WHERE r.state IS NOT DISTINCT FROM 'queued' AND r.cancel_requested_at IS NULL
        AND (r.attempt = 0) = %(are_new)s AND (r.agent IS NOT NULL) = %(have_agent)s
        AND (w.may_be_suspect OR r.crashes < %(suspect_crashes)s)
        AND (SELECT o.suspended_at FROM orgs o WHERE o.id = r.org_id) IS NULL
        AND EXISTS (
            SELECT FROM workers WHERE id = %(worker_id)s
            AND seen_at > now() - make_interval(secs => %(safe_seconds)s)
        )
    ORDER BY r.id FOR NO KEY UPDATE OF r SKIP LOCKED
), claimed AS (
    UPDATE runs r SET
        state = 'executing',
        owner = %(worker_id)s,
        -- Random: if this commit is lost, the next claim needs another fence (decision 23).
        fence = r.fence + 1 + floor(random() * 1000000)::bigint,
        -- Only the first execution and those after a lost worker count.
        attempt = r.attempt + (r.attempt = 0
            OR r.resume_reason IS NOT DISTINCT FROM 'worker_lost')::integer,
        started_at = coalesce(r.started_at, clock_timestamp())
    FROM free WHERE r.id = free.id
    RETURNING r.id AS run_id, r.org_id, r.thread_id, r.parent_run_id, r.api_key_id, r.persona_id,
        r.route_id, r.model, r.options, r.end_user_id, r.metadata, r.trace_id, r.position, r.fence, r.attempt,
        r.has_offered, r.resume_reason, r.queued_at,
        clock_timestamp() AS claimed_at,
        -- The clock may have been set back since.
        greatest(0, extract(epoch FROM clock_timestamp() - r.started_at)::float8
            - greatest(0, r.waiting_ms) / 1000.0::float8) AS used_seconds,
        r.crashes >= %(suspect_crashes)s AS is_suspect,
        pg_postmaster_start_time() AS server,
        -- LIMIT: each is one look into an index. EXISTS may read the table into a hash.
        coalesce(
            (SELECT true FROM budgets b WHERE b.org_id = r.org_id
                AND b.scope IN ('org', 'api_key:' || r.api_key_id::text,
                    'end_user:' || r.end_user_id,
                    CASE WHEN r.end_user_id IS NOT NULL THEN 'end_user' END) LIMIT 1),
            (SELECT true FROM credit_balances c WHERE c.org_id = r.org_id LIMIT 1),
            (SELECT true FROM holds h WHERE h.run_id = r.id LIMIT 1),
            false
        ) AS is_limited,
        -- All that the first run of a thread answers to: it needs no further statement to read it.
        CASE WHEN %(are_new)s AND NOT %(have_agent)s AND r.position = 2 THEN (
            SELECT jsonb_build_object('content', content, 'parts', parts) FROM messages
            WHERE thread_id = r.thread_id AND position = 1 AND role = 'user'
                AND octet_length(content) <= %(question_bytes)s
                AND superseded_at IS NULL AND steered_into IS NULL
        ) END AS question
), started AS (
    -- The first event of a new run is made of its row alone, so that its claim is one statement.
    INSERT INTO run_events (run_id, seq, type, payload)
    SELECT run_id, 1, 'run.started', replace(replace(replace(replace(replace(%(template)s::text,
        '"(time)"', to_json(to_char(claimed_at AT TIME ZONE 'UTC', %(time_format)s))::text),
        '"(persona)"', to_json(persona_id)::text),
        '"(route)"', to_json(route_id)::text),
        '"(model)"', to_json(model)::text),
        '"(metadata)"', metadata::text)
    FROM claimed WHERE %(are_new)s
    RETURNING run_id, payload
)
SELECT claimed.*, started.payload AS started_payload FROM claimed LEFT JOIN started USING (run_id)
