-- Append an entry to the chain of its org, whose head is locked from here on: others wait for it, so
-- that this is one statement. Appends nothing where the org has no head yet.
--
-- The hash is that of shared/audit/chain.py: its text comes in pieces, between which stands what is
-- known under the lock alone.
WITH head AS MATERIALIZED (
    SELECT org_id, seq + 1 AS seq, hash AS prev_hash,
        date_trunc('milliseconds', clock_timestamp()) AS created_at
    FROM audit_heads WHERE org_id = %(org_id)s FOR NO KEY UPDATE
), chained AS MATERIALIZED (
    SELECT *, encode(sha256(convert_to(
        %(before_created_at)s::text
        || to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
        || %(before_prev_hash)s::text || prev_hash || %(before_seq)s::text || seq || %(rest)s::text,
        'UTF8'
    )), 'hex') AS hash
    FROM head
), entry AS (
    INSERT INTO audit_entries (org_id, seq, created_at, action, actor_type, actor_user_id,
        actor_api_key_id, actor_end_user_id, target_type, target_id, details, ip, user_agent,
        prev_hash, hash)
    SELECT org_id, seq, created_at, %(action)s, %(actor_type)s, %(actor_user_id)s::uuid,
        %(actor_api_key_id)s::uuid, %(actor_end_user_id)s::text, %(target_type)s::text,
        %(target_id)s::text, %(details)s::jsonb, %(ip)s::text, %(user_agent)s::text, prev_hash, hash
    FROM chained
)
UPDATE audit_heads h SET seq = c.seq, hash = c.hash FROM chained c WHERE h.org_id = c.org_id
