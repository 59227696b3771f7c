-- The threads of an end user of an org, or the private ones of a user, with those of their sub-runs.
WITH RECURSIVE own AS (
    SELECT id FROM threads WHERE org_id = %(org_id)s AND end_user_id = %(end_user_id)s
    UNION ALL
    SELECT id FROM threads WHERE is_private AND created_by_user_id = %(user_id)s
    UNION ALL
    SELECT t.id FROM runs r JOIN threads t ON t.id = r.thread_id
    WHERE r.org_id = %(org_id)s AND r.end_user_id = %(end_user_id)s AND t.parent_run_id IS NOT NULL
), chosen AS (
    SELECT id FROM own
    UNION
    SELECT t.id FROM chosen
    JOIN runs r ON r.thread_id = chosen.id JOIN threads t ON t.parent_run_id = r.id
)
SELECT id FROM chosen ORDER BY id
