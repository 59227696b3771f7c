-- The runs of an end user in threads that are not theirs, each with the messages that belong to it: the
-- answer, what its creator has steered into it, and what it answers. Those that were sent for another
-- end user are left out by the caller.
WITH RECURSIVE single AS (
    SELECT id, thread_id, created_by_user_id, position, superseded_by FROM runs
    WHERE org_id = %(org_id)s AND end_user_id = %(end_user_id)s
        AND NOT thread_id = ANY(%(thread_ids)s)
), holder AS (
    -- A waiting run that another one has superseded has handed its messages on to that.
    SELECT id AS run_id, created_by_user_id, id, thread_id, position, superseded_by,
        CASE WHEN position >= 2251799813685248 THEN superseded_by END AS handed_to
    FROM single
    UNION ALL
    SELECT h.run_id, h.created_by_user_id, r.id, r.thread_id, r.position, r.superseded_by,
        h.handed_to
    FROM holder h JOIN runs r ON r.id = h.superseded_by WHERE h.position >= 2251799813685248
), steered AS (
    SELECT h.id AS run_id, m.id, m.created_by_user_id, m.position
    FROM holder h JOIN messages m ON m.steered_into = h.id
    UNION
    -- A rollback or a retry has made these the user's alone again.
    SELECT h.id, m.id, m.created_by_user_id, m.position
    FROM holder h JOIN run_events e ON e.run_id = h.id AND e.type = 'run.steered'
    JOIN messages m ON m.id = (e.payload::json #>> '{data,message_id}')::uuid
        AND m.thread_id = h.thread_id
), before AS (
    -- The end of a run moves it behind what it was steered with, the first of which gets its place:
    -- its question is before that.
    SELECT run_id, created_by_user_id, id, handed_to, thread_id, NULL::uuid AS message_id,
        true AS is_of_creator,
        least(position, (SELECT min(position) FROM steered s WHERE s.run_id = h.id)) AS position
    FROM holder h WHERE position < 2251799813685248
    UNION ALL
    -- Every run and message has a place of its own: where none is found, there was another run.
    SELECT b.run_id, b.created_by_user_id, b.id, b.handed_to, b.thread_id, m.id,
        b.message_id IS NULL OR m.created_by_user_id = b.created_by_user_id, m.position
    FROM before b JOIN messages m ON m.thread_id = b.thread_id AND m.position = b.position - 1
    WHERE m.role = 'user'
), found AS (
    SELECT run_id, id, message_id, is_of_creator, handed_to, position FROM before
    WHERE message_id IS NOT NULL
    UNION ALL
    -- A run that waits for its thread, or ended while it did.
    SELECT h.run_id, h.id, m.id, true, handed_to, m.position
    FROM holder h JOIN messages m ON m.thread_id = h.thread_id
        AND m.position > h.position - %(slot)s AND m.position < h.position
    WHERE h.position >= 2251799813685248
), said AS (
    -- The first of a run's messages is its earliest: what others posted while it waited is before it.
    SELECT run_id, id, message_id, is_of_creator, is_since AND position >= first_value(position)
        OVER (PARTITION BY run_id, id ORDER BY is_since DESC, message_id) AS is_brought
    FROM (
        -- An id begins with its time. That of a run is made before those of its requests' messages.
        SELECT *, left(message_id::text, 13) >= left(run_id::text, 13)
            AND (handed_to IS NULL OR left(message_id::text, 13) < left(handed_to::text, 13))
            AS is_since
        FROM found
    ) AS timed
)
SELECT id AS run_id, NULL AS message_id FROM single
UNION
SELECT run_id, message_id FROM said WHERE is_brought
UNION
-- A run without a message of its own answers what was said since the run before it.
SELECT run_id, message_id FROM said s WHERE id = run_id AND is_of_creator
    AND NOT EXISTS (SELECT FROM said o WHERE o.run_id = s.run_id AND o.is_brought)
    AND NOT EXISTS (SELECT FROM runs r WHERE r.superseded_by = s.run_id AND r.position >= 2251799813685248)
UNION
SELECT r.id, s.id FROM single r JOIN steered s
    ON s.run_id = r.id AND s.created_by_user_id = r.created_by_user_id
UNION
SELECT r.id, m.id FROM single r JOIN messages m ON m.run_id = r.id
