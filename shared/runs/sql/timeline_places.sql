-- The newest places of a thread before a position, each with a message or a run; `size` are the
-- bytes of the message. Answers of runs are read with the runs, unless these are gone.
-- Positions from first_waiting on are those of runs that wait for their thread, of messages that are
-- offered to its active run or part of it, and of runs that have ended there, which are left out.
WITH waiting AS (
    SELECT position, id FROM runs
    WHERE thread_id = %(thread_id)s AND position < %(before)s
        AND position >= 2251799813685248 AND ended_at IS NULL
), begun AS (
    SELECT position, id FROM runs
    WHERE thread_id = %(thread_id)s AND position < least(%(before)s, %(first_waiting)s)
    ORDER BY position DESC LIMIT (limit)
), said AS (
    SELECT position, id, octet_length(content) AS size FROM messages
    WHERE thread_id = %(thread_id)s AND position < least(%(before)s, %(first_waiting)s)
        -- Answers are passed over, and there are no more of them than runs on the page.
        AND position > (
            SELECT CASE WHEN count(*) = (limit) THEN min(position) ELSE 0 END FROM begun
        )
        AND superseded_at IS NULL AND (role = 'user' OR run_id IS NULL)
    ORDER BY position DESC LIMIT (limit)
), said_early AS (
    SELECT m.position, m.id, octet_length(m.content) AS size
    FROM runs r JOIN messages m ON m.thread_id = r.thread_id
        AND m.position > r.position - %(slot)s AND m.position < r.position
    WHERE r.thread_id = %(thread_id)s AND r.position < %(before)s + %(slot)s
        AND r.position >= 2251799813685248 AND r.ended_at IS NULL
        AND m.position < %(before)s AND m.superseded_at IS NULL
), offered AS (
    SELECT m.position, m.id, octet_length(m.content) AS size
    FROM offered_messages o JOIN messages m ON m.id = o.message_id
    WHERE o.thread_id = %(thread_id)s AND m.position < %(before)s AND m.superseded_at IS NULL
), steered AS (
    -- Until the end of the run, which moves it behind them.
    SELECT m.position, m.id, octet_length(m.content) AS size
    FROM runs r JOIN messages m ON m.steered_into = r.id
    WHERE r.thread_id = %(thread_id)s AND r.state IN ('queued', 'executing', 'waiting', 'suspended')
        AND m.position < %(before)s AND m.position >= 2251799813685248 AND m.superseded_at IS NULL
)
SELECT position, id AS run_id, NULL::uuid AS message_id, 0 AS size FROM waiting
UNION ALL SELECT position, id, NULL, 0 FROM begun
UNION ALL SELECT position, NULL, id, size FROM said
UNION ALL SELECT position, NULL, id, size FROM said_early
UNION ALL SELECT position, NULL, id, size FROM offered
UNION ALL SELECT position, NULL, id, size FROM steered
ORDER BY position DESC LIMIT (limit)
