-- Queue runs in their threads: lock each thread, take a position in it, insert the run.
--
-- Returns the ids of the runs that were created: none for a run that its creator must not create,
-- in a thread that has an active run, or in one that another session has locked.
-- Who sees a thread is said in shared/threads/visibility.py, who may write to it by
-- `Actor.check_may_write`.
WITH wanted AS (
    SELECT unnest(%(ids)s::uuid[]) AS id,
        unnest(%(org_ids)s::uuid[]) AS org_id,
        unnest(%(thread_ids)s::uuid[]) AS thread_id,
        unnest(%(user_ids)s::uuid[]) AS created_by_user_id,
        unnest(%(api_key_ids)s::uuid[]) AS api_key_id,
        unnest(%(write_all)s::boolean[]) AS writes_all,
        unnest(%(trace_ids)s::text[]) AS trace_id,
        unnest(%(persona_ids)s::text[]) AS persona_id,
        unnest(%(route_ids)s::text[]) AS route_id,
        unnest(%(models)s::text[]) AS model,
        unnest(%(options)s::text[])::jsonb AS options,
        unnest(%(end_user_ids)s::text[]) AS end_user_id,
        unnest(%(metadata)s::text[])::jsonb AS metadata
), free AS (
    SELECT w.* FROM wanted w JOIN threads t ON t.id = w.thread_id
    WHERE t.org_id = w.org_id AND t.deleted_at IS NULL
        AND (NOT t.is_private OR t.created_by_user_id = w.created_by_user_id)
        AND (w.writes_all OR t.created_by_user_id = w.created_by_user_id)
        AND NOT EXISTS (
            SELECT FROM runs r
            WHERE r.thread_id = t.id AND r.state IN ('queued', 'executing', 'waiting')
        )
    ORDER BY t.id FOR NO KEY UPDATE OF t SKIP LOCKED
), positioned AS (
    UPDATE threads t SET next_position = t.next_position + 1, updated_at = now()
    FROM free WHERE t.id = free.thread_id
    RETURNING free.*, t.next_position - 1 AS position, t.visible_to,
        t.end_user_id AS end_user_id_of_thread
)
INSERT INTO runs (id, org_id, thread_id, created_by_user_id, api_key_id, trace_id, persona_id,
    route_id, model, options, end_user_id, metadata, position, visible_to, state, created_at,
    queued_at)
-- Not now(): the statement may have waited for a thread's lock until the run before had ended.
SELECT id, org_id, thread_id, created_by_user_id, api_key_id, trace_id, persona_id,
    route_id, model, options, coalesce(end_user_id, end_user_id_of_thread), metadata, position,
    visible_to, 'queued', clock_timestamp(), clock_timestamp()
FROM positioned
-- A run that was created at the same time; this one has taken a position in vain.
ON CONFLICT (thread_id) WHERE state IN ('queued', 'executing', 'waiting') DO NOTHING
RETURNING id
