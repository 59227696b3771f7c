-- Insert pending runs, each behind all that wait for its thread, with its message before it, and flag
-- the active run of the thread.
--
-- Returns the runs that were inserted, with their positions in the queue, and those for which the queue
-- is full, without one. Nothing of a request that its actor must not make, with another `on_busy` of
-- its own or of the thread, in a thread whose active run is not one of the `holders`, or where another
-- session has a lock: nobody waits here for one. Whoever ends a run has its row before it needs the thread: a run
-- that was locked while it was active stays the active one. `queue_of` looks at the queue under these
-- locks; what this statement sees by itself is older.
-- Who sees a thread is said in shared/threads/visibility.py, who may write to it by
-- `Actor.check_may_write`. For the sub-selects see `create.sql`.
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
        unnest((SELECT %(on_busy)s::text[])) AS on_busy,
        unnest((SELECT %(message_ids)s::uuid[])) AS message_id,
        unnest((SELECT %(contents)s::text[])) AS content,
        unnest((SELECT %(parts)s::text[]))::jsonb AS parts,
        unnest((SELECT %(message_metadata)s::text[]))::jsonb AS message_metadata
), held AS (
    SELECT w.id, t.id AS thread_id, t.end_user_id, t.visible_to, r.id AS active_run_id
    FROM wanted w JOIN threads t ON t.id = w.thread_id
    -- LIMIT: one look into an index for each. A join may read all active runs.
    JOIN LATERAL (
        SELECT id FROM runs
        WHERE thread_id = t.id AND state IN ('queued', 'executing', 'waiting', 'suspended') LIMIT 1
    ) AS active ON true
    JOIN runs r ON r.id = active.id
    WHERE t.org_id = w.org_id AND t.deleted_at IS NULL
        AND (NOT t.is_private OR t.created_by_user_id = w.created_by_user_id)
        AND (w.writes_all OR t.created_by_user_id = w.created_by_user_id)
        AND coalesce(w.on_busy, t.on_busy) = 'enqueue'
        AND r.state IN ('queued', 'executing', 'waiting', 'suspended')
        AND CASE WHEN r.cancel_requested_at IS NULL THEN r.state ELSE 'cancelling' END
            = ANY((SELECT %(holders)s::text[])::text[])
    ORDER BY r.id FOR NO KEY UPDATE OF r, t SKIP LOCKED
), queue AS MATERIALIZED (
    SELECT thread_id, waiting, pending,
        -- As `places.Queue.end` has it.
        coalesce((newest + %(slot)s - 1) / %(slot)s * %(slot)s, %(middle)s - %(slot)s) AS last
    FROM (SELECT DISTINCT thread_id FROM held) AS busy CROSS JOIN LATERAL queue_of(thread_id)
), ranked AS (
    SELECT *, row_number() OVER (PARTITION BY thread_id ORDER BY id) AS rank FROM held
), placed AS (
    SELECT id, active_run_id, visible_to, end_user_id AS end_user_id_of_thread,
        pending + rank AS queue_position, last + rank * %(slot)s AS position
    FROM ranked JOIN queue USING (thread_id) WHERE waiting + rank <= %(max_waiting)s
), flagged AS (
    UPDATE runs SET has_followers = true
    WHERE id IN (SELECT active_run_id FROM placed) AND NOT has_followers
), said AS (
    INSERT INTO messages (id, org_id, thread_id, created_by_user_id, position, role, content,
        parts, metadata)
    -- The slot is new: this is the first message in it.
    SELECT message_id, org_id, thread_id, created_by_user_id, position - %(slot)s + 1, 'user',
        content, parts, message_metadata
    FROM wanted JOIN placed USING (id) WHERE message_id IS NOT NULL
), created AS (
    INSERT INTO runs (id, org_id, thread_id, created_by_user_id, api_key_id, trace_id, persona_id,
        route_id, model, agent, options, end_user_id, metadata, position, visible_to, state,
        created_at, queued_at)
    SELECT id, org_id, thread_id, created_by_user_id, api_key_id, trace_id, persona_id, route_id,
        model, agent, options, coalesce(end_user_id, end_user_id_of_thread), metadata, position,
        visible_to, 'pending', clock_timestamp(), clock_timestamp()
    FROM wanted JOIN placed USING (id)
)
SELECT id, queue_position FROM held LEFT JOIN placed USING (id)
