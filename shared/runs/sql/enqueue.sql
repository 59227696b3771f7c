-- Queue runs in idle threads, and insert pending ones in busy threads: each with its message before it,
-- a pending one behind all that wait for its thread, whose active run is flagged.
--
-- Returns rows with the limit that refuses a request, or the state of its run, if that was inserted, and
-- its position in the queue, if this statement had the locks of a busy thread. With a position and
-- without a run, the queue is full. Nothing is done, and no row returned, for a request that its actor
-- must not make, with another `on_busy` of its own or of the busy thread, where the active run is not
-- one of the `holders`, or where another session has a lock: this statement waits for none but that of
-- a limited org. The end of a run locks its row before its thread: a run that was locked while it was
-- active stays the active one. `queue_of` looks at the queue under these locks; what this statement
-- sees by itself is older.
-- Who sees a thread is said in shared/threads/visibility.py, who may write to it by
-- `Actor.check_may_write`. For the sub-selects, `free` and the conflict see `create.sql`.
WITH wanted AS (
    SELECT * FROM unnest(
        (SELECT %(ids)s::uuid[]), %(org_ids)s::uuid[], %(thread_ids)s::uuid[], %(user_ids)s::uuid[],
        %(api_key_ids)s::uuid[], %(write_all)s::boolean[], %(trace_ids)s::text[],
        %(persona_ids)s::text[], %(route_ids)s::text[], %(models)s::text[], %(agents)s::text[],
        %(options)s::text[], %(end_user_ids)s::text[], %(metadata)s::text[], %(on_busy)s::text[],
        %(message_ids)s::uuid[], %(contents)s::text[], %(parts)s::text[],
        %(message_metadata)s::text[],
        (SELECT CASE WHEN %(org_queued)s::integer[] IS NOT NULL THEN run_refusals(
            %(org_ids)s, %(api_key_ids)s, %(key_concurrent)s, %(org_concurrent)s, %(org_queued)s
        ) END)
    ) AS w (
        id, org_id, thread_id, created_by_user_id, api_key_id, writes_all, trace_id, persona_id,
        route_id, model, agent, options, end_user_id, metadata, on_busy, message_id, content, parts,
        message_metadata, refusal
    )
), seen AS (
    SELECT w.id, w.thread_id, w.message_id, t.visible_to,
        coalesce(w.on_busy, t.on_busy) = 'enqueue' AS may_wait,
        -- LIMIT: one look into an index for each. A join may read all active runs.
        (SELECT r.id FROM runs r WHERE r.thread_id = t.id
            AND r.state IN ('queued', 'executing', 'waiting', 'suspended') LIMIT 1) AS active_run_id
    FROM wanted w JOIN threads t ON t.id = w.thread_id
    WHERE t.org_id = w.org_id AND w.refusal IS NULL
        AND (t.created_by_user_id = w.created_by_user_id OR (w.writes_all AND NOT t.is_private))
), free AS (
    -- What another session has committed meanwhile counts: it is NULL if the thread is deleted.
    SELECT s.* FROM seen s JOIN threads t ON t.id = s.thread_id
    WHERE active_run_id IS NULL AND t.visible_to = s.visible_to
    ORDER BY t.id FOR NO KEY UPDATE OF t SKIP LOCKED
), advanced AS (
    UPDATE threads t SET updated_at = now(),
        next_position = next_position + 1 + (message_id IS NOT NULL)::integer
    FROM free f WHERE t.id = f.thread_id
    RETURNING f.id, next_position - 1 AS position, t.visible_to, t.end_user_id
), held AS (
    SELECT s.id, s.thread_id, t.visible_to, t.end_user_id, active_run_id
    FROM seen s JOIN threads t ON t.id = s.thread_id JOIN runs r ON r.id = active_run_id
    WHERE may_wait AND t.visible_to = s.visible_to AND r.ended_at IS NULL
        AND CASE WHEN r.cancel_requested_at IS NULL THEN r.state ELSE 'cancelling' END
            = ANY((SELECT %(holders)s::text[])::text[])
    ORDER BY r.id FOR NO KEY UPDATE OF r, t SKIP LOCKED
), queue AS MATERIALIZED (
    SELECT thread_id, active_run_id, waiting, pending,
        -- As `places.Queue.end` has it.
        coalesce((newest + %(slot)s - 1) / %(slot)s * %(slot)s, %(middle)s - %(slot)s) AS last
    FROM (SELECT DISTINCT thread_id, active_run_id FROM held) AS busy, queue_of(thread_id)
), ranked AS (
    SELECT *, row_number() OVER (PARTITION BY thread_id ORDER BY id) AS rank FROM held
), placed AS (
    SELECT id, 'queued' AS state, position, visible_to, end_user_id AS thread_end_user,
        NULL AS queue_position
    FROM advanced
    UNION ALL
    SELECT id, CASE WHEN waiting + rank <= %(max_waiting)s THEN 'pending' END,
        last + rank * %(slot)s, visible_to, end_user_id, pending + rank
    FROM ranked JOIN queue USING (thread_id)
), flagged AS (
    UPDATE runs SET has_followers = true FROM queue
    WHERE id = active_run_id AND waiting < %(max_waiting)s AND NOT has_followers
), created AS (
    INSERT INTO runs (id, org_id, thread_id, created_by_user_id, api_key_id, trace_id, persona_id,
        route_id, model, agent, options, end_user_id, metadata, position, visible_to, state,
        created_at, queued_at)
    SELECT id, org_id, thread_id, created_by_user_id, api_key_id, trace_id, persona_id, route_id,
        model, agent, options::jsonb, coalesce(end_user_id, thread_end_user), metadata::jsonb,
        position, visible_to, state, clock_timestamp(), clock_timestamp()
    FROM wanted JOIN placed USING (id) WHERE state IS NOT NULL
    ON CONFLICT DO NOTHING
    RETURNING id, state, position
), said AS (
    INSERT INTO messages (id, org_id, thread_id, created_by_user_id, position, role, content,
        parts, metadata)
    -- Of a slot, which is new, it is the first message.
    SELECT message_id, org_id, thread_id, created_by_user_id,
        position - CASE state WHEN 'queued' THEN 1 ELSE %(slot)s - 1 END, 'user', content,
        parts::jsonb, message_metadata::jsonb
    FROM wanted JOIN created USING (id) WHERE message_id IS NOT NULL
)
SELECT id, NULL AS refusal, created.state, queue_position
FROM placed LEFT JOIN created USING (id)
UNION ALL
SELECT id, refusal, NULL, NULL FROM wanted WHERE refusal IS NOT NULL
