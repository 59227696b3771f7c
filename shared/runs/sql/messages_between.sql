-- The messages of users between two positions of each thread, the newest ones of together about
-- most_bytes, at least one.
SELECT id, org_id, thread_id, run_id, created_by_user_id, position, role, content, parts, metadata,
    partial, created_at, number, found
FROM (
    SELECT m.*, wanted.number, count(*) OVER (PARTITION BY wanted.number) AS found, sum(octet_length(m.content)) OVER (
        PARTITION BY wanted.number ORDER BY m.position DESC
    ) - octet_length(m.content) AS before
    FROM unnest(%(thread_ids)s::uuid[], %(after)s::bigint[], %(positions)s::bigint[])
        WITH ORDINALITY AS wanted (thread_id, after, before_position, number)
    CROSS JOIN LATERAL (
        SELECT * FROM messages
        WHERE thread_id = wanted.thread_id AND position > wanted.after
            AND position < wanted.before_position AND role = 'user' AND superseded_at IS NULL
            -- A run that is steered has its message in an event.
            AND steered_into IS NULL
        ORDER BY position DESC LIMIT %(most)s
    ) AS m
) AS measured
WHERE before < %(most_bytes)s
ORDER BY number, position
