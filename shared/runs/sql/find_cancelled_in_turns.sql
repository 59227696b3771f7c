-- Find runs that no worker holds, where a cancel was requested but not carried out, in turns of their
-- API keys: the first of each, and of each org's runs without one, then the second of each. The
-- revocation of a key with very many runs does not delay the cancels of others.
--
-- An org with a copy in another installation waits until it is there.
WITH cancelled AS (
    SELECT id, cancel_requested_at,
        row_number() OVER (PARTITION BY org_id, api_key_id ORDER BY cancel_requested_at, id) AS turn
    FROM runs
    WHERE cancel_requested_at IS NOT NULL AND id <> ALL(%(left)s::uuid[])
        AND state IN ('queued', 'waiting', 'suspended', 'pending', 'scheduled')
        AND org_id NOT IN (SELECT id FROM orgs WHERE suspended_at IS NOT NULL AND moved_to IS NOT NULL)
)
SELECT id FROM cancelled ORDER BY turn, cancel_requested_at, id LIMIT %(most)s
