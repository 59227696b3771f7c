-- The runs of an end user in threads that are not theirs, with the messages that belong to them: the
-- answer, what was steered into the run, and the message that it answers.
SELECT r.id, array_agg(m.id) FILTER (WHERE m.id IS NOT NULL) AS message_ids
FROM runs r
LEFT JOIN messages m ON m.thread_id = r.thread_id AND (
    m.run_id = r.id OR m.steered_into = r.id OR (m.position = r.position - 1 AND m.role = 'user')
)
WHERE r.org_id = %(org_id)s AND r.end_user_id = %(end_user_id)s
    AND NOT r.thread_id = ANY(%(thread_ids)s)
GROUP BY r.id ORDER BY r.id
