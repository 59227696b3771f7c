-- The files that messages and tool results of threads name.
SELECT part ->> 'file_id' AS file_id
FROM messages m CROSS JOIN LATERAL jsonb_array_elements(m.parts) AS part
WHERE m.thread_id = ANY(%(thread_ids)s) AND jsonb_typeof(m.parts) = 'array' AND part ? 'file_id'
UNION
SELECT file ->> 'file_id'
FROM runs r JOIN tool_calls c ON c.run_id = r.id
CROSS JOIN LATERAL jsonb_array_elements(c.files) AS file
WHERE r.thread_id = ANY(%(thread_ids)s) AND jsonb_typeof(c.files) = 'array' AND file ? 'file_id'
