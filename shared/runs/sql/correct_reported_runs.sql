-- Give the usage of ended runs of a thread, between two positions, the metadata that usage reports
-- may have: none if only the creator sees the thread.
UPDATE run_usage u
SET metadata = CASE WHEN %(is_private)s::boolean THEN '{}' ELSE r.metadata END
FROM runs r
WHERE r.thread_id = %(thread_id)s AND r.position >= %(since)s AND r.position <= %(upto)s
    AND r.ended_at IS NOT NULL AND r.metadata <> '{}' AND u.run_id = r.id
    AND u.metadata <> CASE WHEN %(is_private)s::boolean THEN '{}' ELSE r.metadata END
