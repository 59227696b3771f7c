-- The threads of single runs and messages of an end user, each with the position from which on its runs
-- may have read these: that of the first one, or of the run that had not ended when the first message
-- was made. It may have taken that message, or sent it to a vendor without taking it, as its last
-- call does if no answer comes of it. Behind it come all that have ended since.
--
-- The end of a run moves it behind the messages that it has taken, the first of which gets its place;
-- what it has summed up counts from there. After a rollback or a retry only events say which these are.
WITH began AS (
    SELECT thread_id, min(position) AS position, min(created_at) AS created_at FROM (
        SELECT thread_id, position, NULL AS created_at FROM runs WHERE id = ANY(%(run_ids)s)
        UNION ALL
        -- What was sent for later was offered to no run: it has no time, and counts from its run on.
        -- That run is behind it in its slot; a message that is offered has a slot without a run.
        SELECT thread_id, position, CASE WHEN created_at >= coalesce((
            SELECT r.not_before FROM runs r WHERE r.thread_id = m.thread_id
                AND r.position > m.position AND r.position < m.position + %(slot)s
            ORDER BY r.position LIMIT 1
        ), created_at) THEN created_at END FROM messages m WHERE id = ANY(%(message_ids)s)
    ) AS theirs GROUP BY thread_id
)
SELECT b.thread_id, least(b.position, active.position, taken.position) AS position
FROM began b LEFT JOIN LATERAL (
    SELECT r.id, r.position FROM runs r
    WHERE r.thread_id = b.thread_id AND coalesce(r.ended_at, 'infinity') >= b.created_at
    ORDER BY r.position LIMIT 1
) AS active ON true LEFT JOIN LATERAL (
    -- Each by its id: in a join, Postgres may read all messages.
    SELECT min((
        SELECT m.position FROM messages m WHERE m.id = (e.payload::json #>> '{data,message_id}')::uuid
    )) AS position
    FROM run_events e WHERE e.run_id = active.id AND e.type = 'run.steered'
) AS taken ON true
