-- The newest places of a thread before a position, each with a message or a run; `size` are the
-- bytes of the message. Answers of runs are read with the runs, unless these are gone.
WITH of_runs AS (
    SELECT position, id FROM runs
    WHERE thread_id = %(thread_id)s AND position < %(before)s
    ORDER BY position DESC LIMIT (limit)
), of_messages AS (
    SELECT position, id, octet_length(content) AS size FROM messages
    WHERE thread_id = %(thread_id)s AND position < %(before)s
        -- Answers are passed over, and there are no more of them than runs on the page.
        AND position > (
            SELECT CASE WHEN count(*) = (limit) THEN min(position) ELSE 0 END FROM of_runs
        )
        AND superseded_at IS NULL AND (role = 'user' OR run_id IS NULL)
    ORDER BY position DESC LIMIT (limit)
)
SELECT position, id AS run_id, NULL::uuid AS message_id, 0 AS size FROM of_runs
UNION ALL
SELECT position, NULL, id, size FROM of_messages
ORDER BY position DESC LIMIT (limit)
