"""The audit log: entries that nothing may change, in a chain of hashes for each org.

Revision ID: 0048
Revises: 0047
"""

from alembic import op

revision = "0048"
down_revision = "0047"
branch_labels = None
depends_on = None

# `arkloop audit prune` alone makes the setting, for its own transaction.
_STATEMENTS = """
CREATE TABLE audit_heads (
    org_id uuid NOT NULL,
    seq bigint NOT NULL,
    hash text NOT NULL,
    CONSTRAINT pk_audit_heads PRIMARY KEY (org_id)
);

CREATE TABLE audit_entries (
    org_id uuid NOT NULL,
    seq bigint NOT NULL,
    created_at timestamptz NOT NULL,
    action text NOT NULL,
    actor_type text NOT NULL,
    actor_user_id uuid,
    actor_api_key_id uuid,
    actor_end_user_id text,
    target_type text,
    target_id text,
    details jsonb NOT NULL,
    ip text,
    user_agent text,
    prev_hash text NOT NULL,
    hash text NOT NULL,
    CONSTRAINT pk_audit_entries PRIMARY KEY (org_id, seq)
);

CREATE INDEX ix_audit_entries_org_id_action_seq ON audit_entries (org_id, action, seq);
CREATE INDEX ix_audit_entries_org_id_actor_user_id_seq
    ON audit_entries (org_id, actor_user_id, seq);

CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND TG_TABLE_NAME = 'audit_entries'
        AND current_setting('arkloop.audit_prune', true) = 'on'
    THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;

CREATE FUNCTION check_audit_head() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.org_id <> OLD.org_id OR NEW.seq <> OLD.seq + 1 THEN
        RAISE EXCEPTION 'a head of the audit log moves by one entry'
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER audit_entries_are_kept BEFORE UPDATE OR DELETE ON audit_entries
    FOR EACH ROW EXECUTE FUNCTION refuse_audit_change();
CREATE TRIGGER audit_entries_are_not_truncated BEFORE TRUNCATE ON audit_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change();
CREATE TRIGGER audit_heads_are_kept BEFORE DELETE ON audit_heads
    FOR EACH ROW EXECUTE FUNCTION refuse_audit_change();
CREATE TRIGGER audit_heads_are_not_truncated BEFORE TRUNCATE ON audit_heads
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change();
CREATE TRIGGER audit_heads_move_on BEFORE UPDATE ON audit_heads
    FOR EACH ROW EXECUTE FUNCTION check_audit_head();
"""


def upgrade() -> None:
    op.execute(_STATEMENTS)
