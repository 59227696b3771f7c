-- The files that messages and tool results of these threads and runs, and these messages, name, and
-- that no others do, unless their thread was deleted.
WITH named AS MATERIALIZED (
    SELECT part ->> 'file_id' AS file_id
    FROM messages m CROSS JOIN LATERAL jsonb_array_elements(m.parts) AS part
    WHERE (m.thread_id = ANY(%(thread_ids)s) OR m.id = ANY(%(message_ids)s))
        AND jsonb_typeof(m.parts) = 'array' AND part ? 'file_id'
    UNION
    SELECT file ->> 'file_id'
    FROM runs r JOIN tool_calls c ON c.run_id = r.id
    CROSS JOIN LATERAL jsonb_array_elements(c.files) AS file
    WHERE (r.thread_id = ANY(%(thread_ids)s) OR r.id = ANY(%(run_ids)s))
        AND jsonb_typeof(c.files) = 'array' AND file ? 'file_id'
)
SELECT file_id FROM named
EXCEPT
-- All messages are read only if a file was found.
SELECT part ->> 'file_id'
FROM messages m JOIN threads t ON t.id = m.thread_id AND t.deleted_at IS NULL
CROSS JOIN LATERAL jsonb_array_elements(m.parts) AS part
WHERE EXISTS (SELECT FROM named) AND jsonb_typeof(m.parts) = 'array'
    AND NOT m.thread_id = ANY(%(thread_ids)s) AND NOT m.id = ANY(%(message_ids)s)
    AND part ->> 'file_id' IN (SELECT file_id FROM named)
EXCEPT
SELECT file ->> 'file_id'
FROM runs r JOIN threads t ON t.id = r.thread_id AND t.deleted_at IS NULL
JOIN tool_calls c ON c.run_id = r.id
CROSS JOIN LATERAL jsonb_array_elements(c.files) AS file
WHERE EXISTS (SELECT FROM named) AND jsonb_typeof(c.files) = 'array'
    AND NOT r.thread_id = ANY(%(thread_ids)s) AND NOT r.id = ANY(%(run_ids)s)
    AND file ->> 'file_id' IN (SELECT file_id FROM named)
