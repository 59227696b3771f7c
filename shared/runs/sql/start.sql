-- Start a run that has waited for its thread: queue it, behind its messages at the end of the thread.
--
-- The caller has the locks of the thread's row and of the run's.
WITH run AS (
    SELECT id, thread_id, position FROM runs WHERE id = %(run_id)s
), said AS (
    SELECT m.id, row_number() OVER (ORDER BY m.position) AS rank
    FROM run JOIN messages m ON m.thread_id = run.thread_id
    WHERE m.position > run.position - %(slot)s AND m.position < run.position
        AND m.superseded_at IS NULL
), counted AS (
    SELECT count(*) AS messages FROM said
), advanced AS (
    UPDATE threads t SET updated_at = now(), next_position = t.next_position + counted.messages + 1
    FROM run, counted WHERE t.id = run.thread_id
    RETURNING t.next_position - counted.messages - 1 AS first, t.next_position - 1 AS last
), moved AS (
    UPDATE messages m SET position = advanced.first + said.rank - 1
    FROM said, advanced WHERE m.id = said.id
)
UPDATE runs r SET state = 'queued', position = advanced.last, queued_at = clock_timestamp(),
    has_followers = EXISTS (
        SELECT FROM runs o
        WHERE o.thread_id = r.thread_id AND o.state = 'pending' AND o.id <> r.id
            AND o.position >= 2251799813685248 AND o.ended_at IS NULL
    )
FROM run, advanced WHERE r.id = run.id
RETURNING r.id, r.org_id, r.agent
