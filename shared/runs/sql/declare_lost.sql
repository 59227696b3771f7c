-- Declare workers silent: until they renew their lease they claim nothing, so that one silence
-- loses a run once.
UPDATE workers SET seen_at = now() - make_interval(secs => %(lease)s)
WHERE id IN (
    SELECT id FROM workers
    WHERE id = ANY(%(owners)s) AND seen_at > now() - make_interval(secs => %(lease)s)
    FOR UPDATE SKIP LOCKED
)
