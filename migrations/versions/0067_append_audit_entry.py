"""Entries of the audit log, appended within other statements.

Revision ID: 0067
Revises: 0066
"""

from alembic import op

revision = "0067"
down_revision = "0066"
branch_labels = None
depends_on = None

# A function, so that the statement of an action can have its entry: both are one round trip then.
# VOLATILE: each of its queries sees what is committed when that begins.
# The hash is that of shared/audit/chain.py: its text comes in pieces, between which stands what is
# known under the lock alone.
_APPEND = """
CREATE FUNCTION append_audit_entry(entry jsonb, pieces text[])
RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    made audit_entries := jsonb_populate_record(NULL::audit_entries, entry);
    head audit_heads;
BEGIN
    SELECT h.* INTO head FROM audit_heads h WHERE h.org_id = made.org_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        INSERT INTO audit_heads (org_id, seq, hash) VALUES (made.org_id, 0, repeat('0', 64))
        ON CONFLICT DO NOTHING;
        SELECT h.* INTO head FROM audit_heads h WHERE h.org_id = made.org_id FOR NO KEY UPDATE;
    END IF;
    made.seq := head.seq + 1;
    made.created_at := date_trunc('milliseconds', clock_timestamp());
    made.prev_hash := head.hash;
    made.hash := encode(sha256(convert_to(
        pieces[1] || to_char(made.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
        || pieces[2] || made.prev_hash || pieces[3] || made.seq || pieces[4],
        'UTF8'
    )), 'hex');
    INSERT INTO audit_entries (org_id, seq, created_at, action, actor_type, actor_user_id,
        actor_api_key_id, actor_end_user_id, target_type, target_id, details, ip, user_agent,
        prev_hash, hash)
    VALUES (made.org_id, made.seq, made.created_at, made.action, made.actor_type,
        made.actor_user_id, made.actor_api_key_id, made.actor_end_user_id, made.target_type,
        made.target_id, made.details, made.ip, made.user_agent, made.prev_hash, made.hash);
    UPDATE audit_heads h SET seq = made.seq, hash = made.hash WHERE h.org_id = made.org_id;
END $$;
"""


def upgrade() -> None:
    op.execute(_APPEND)
