-- Queue runs in their threads, some with a message of the user before them: insert or lock each
-- thread, take positions in it, insert the run and the message.
--
-- Returns the ids of the runs that were created: none for a run that its creator must not create,
-- in a thread that has an active run, or in one that another session has locked. Of such a run
-- nothing is inserted, nor of one beyond the limits of its org, which is returned with the limit.
-- Without limits `run_refusals` is not called. It locks the orgs before any thread is locked.
-- Who sees a thread is said in shared/threads/visibility.py, who may write to it by
-- `Actor.check_may_write`.
-- The sub-selects hide the length of the arrays. With it Postgres would plan each execution anew,
-- since one row costs less than a plan for any number, and planning takes longer than executing.
WITH wanted AS (
    SELECT unnest((SELECT %(ids)s::uuid[])) AS id,
        unnest((SELECT %(org_ids)s::uuid[])) AS org_id,
        unnest((SELECT %(thread_ids)s::uuid[])) AS thread_id,
        unnest((SELECT %(user_ids)s::uuid[])) AS created_by_user_id,
        unnest((SELECT %(api_key_ids)s::uuid[])) AS api_key_id,
        unnest((SELECT %(write_all)s::boolean[])) AS writes_all,
        unnest((SELECT %(trace_ids)s::text[])) AS trace_id,
        unnest((SELECT %(persona_ids)s::text[])) AS persona_id,
        unnest((SELECT %(route_ids)s::text[])) AS route_id,
        unnest((SELECT %(models)s::text[])) AS model,
        unnest((SELECT %(agents)s::text[])) AS agent,
        unnest((SELECT %(options)s::text[]))::jsonb AS options,
        unnest((SELECT %(end_user_ids)s::text[])) AS end_user_id,
        unnest((SELECT %(metadata)s::text[]))::jsonb AS metadata,
        unnest((SELECT %(message_ids)s::uuid[])) AS message_id,
        unnest((SELECT %(contents)s::text[])) AS content,
        unnest((SELECT %(parts)s::text[]))::jsonb AS parts,
        unnest((SELECT %(message_metadata)s::text[]))::jsonb AS message_metadata,
        unnest((SELECT %(open_threads)s::boolean[])) AS opens_thread,
        unnest((SELECT %(titles)s::text[])) AS title,
        unnest((SELECT %(are_private)s::boolean[])) AS is_private,
        unnest((SELECT %(thread_end_user_ids)s::text[])) AS thread_end_user_id,
        unnest((SELECT %(thread_metadata)s::text[]))::jsonb AS thread_metadata,
        unnest((SELECT %(thread_on_busy)s::text[])) AS thread_on_busy,
        unnest((SELECT CASE WHEN %(org_queued)s::integer[] IS NOT NULL THEN run_refusals(
            %(org_ids)s::uuid[], %(api_key_ids)s::uuid[], %(key_concurrent)s::integer[],
            %(org_concurrent)s::integer[], %(org_queued)s::integer[]
        ) END)) AS refusal
), opened AS (
    INSERT INTO threads (id, org_id, created_by_user_id, title, is_private, end_user_id, metadata,
        on_busy, next_position)
    SELECT thread_id, org_id, created_by_user_id, title, is_private, thread_end_user_id,
        thread_metadata, thread_on_busy, 2 + (message_id IS NOT NULL)::integer
    FROM wanted WHERE opens_thread AND refusal IS NULL
    RETURNING id, next_position, visible_to, end_user_id
), free AS (
    SELECT w.id, w.thread_id, w.message_id FROM wanted w JOIN threads t ON t.id = w.thread_id
    WHERE t.org_id = w.org_id AND t.deleted_at IS NULL AND w.refusal IS NULL
        AND (NOT t.is_private OR t.created_by_user_id = w.created_by_user_id)
        AND (w.writes_all OR t.created_by_user_id = w.created_by_user_id)
        -- LIMIT: one look into an index for each. NOT EXISTS may read all active runs into a hash.
        AND (
            SELECT true FROM runs r
            WHERE r.thread_id = t.id
                AND r.state IN ('queued', 'executing', 'waiting', 'suspended') LIMIT 1
        ) IS NULL
    ORDER BY t.id FOR NO KEY UPDATE OF t SKIP LOCKED
), advanced AS (
    UPDATE threads t SET updated_at = now(),
        next_position = t.next_position + 1 + (free.message_id IS NOT NULL)::integer
    FROM free WHERE t.id = free.thread_id
    RETURNING free.id, t.next_position, t.visible_to, t.end_user_id
), placed AS (
    SELECT id, next_position - 1 AS position, visible_to, end_user_id AS end_user_id_of_thread
    FROM advanced
    UNION ALL
    SELECT w.id, o.next_position - 1, o.visible_to, o.end_user_id
    FROM wanted w JOIN opened o ON o.id = w.thread_id
), created AS (
    INSERT INTO runs (id, org_id, thread_id, created_by_user_id, api_key_id, trace_id, persona_id,
        route_id, model, agent, options, end_user_id, metadata, position, visible_to, state,
        created_at, queued_at)
    -- Not now(): the statement may have waited for a thread's lock until the run before had ended.
    SELECT id, org_id, thread_id, created_by_user_id, api_key_id, trace_id, persona_id,
        route_id, model, agent, options, coalesce(end_user_id, end_user_id_of_thread), metadata,
        position, visible_to, 'queued', clock_timestamp(), clock_timestamp()
    FROM wanted JOIN placed USING (id)
    -- A run that was created at the same time; this one has taken its positions in vain.
    ON CONFLICT (thread_id) WHERE state IN ('queued', 'executing', 'waiting', 'suspended')
        DO NOTHING
    RETURNING id, position
), said AS (
    INSERT INTO messages (id, org_id, thread_id, created_by_user_id, position, role, content,
        parts, metadata)
    SELECT message_id, org_id, thread_id, created_by_user_id, created.position - 1, 'user', content,
        parts, message_metadata
    FROM wanted JOIN created USING (id) WHERE message_id IS NOT NULL
)
SELECT id, NULL AS refusal FROM created
UNION ALL
SELECT id, refusal FROM wanted WHERE refusal IS NOT NULL
