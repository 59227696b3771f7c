"""Deliveries of runs in private threads have nothing of what was said in them.

Revision ID: 0071
Revises: 0070
"""

from alembic import op

revision = "0071"
down_revision = "0070"
branch_labels = None
depends_on = None

# As in 0039, but for the condition: the org sees the run. Admins read deliveries, and so does
# whatever server they have named, while a private thread is seen by its creator alone.
_FUNCTION = """
CREATE OR REPLACE FUNCTION events_have_their_deliveries() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO webhook_deliveries (
        id, endpoint_id, org_id, type, run_id, ordered_by, seq, created_at, data
    )
    SELECT
        encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) PLACING
            substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
            FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid,
        w.id, r.org_id, NEW.type, r.id, r.id, NEW.seq, clock_timestamp(),
        json_build_object(
            'run_id', r.id,
            'thread_id', r.thread_id,
            'persona_id', r.persona_id,
            'status', substr(NEW.type, length('run.') + 1),
            'seq', NEW.seq,
            'end_user_id', r.end_user_id,
            'metadata', CASE WHEN r.visible_to = r.org_id THEN r.metadata END,
            'output', CASE WHEN r.visible_to = r.org_id THEN (
                SELECT content FROM messages m
                WHERE m.thread_id = r.thread_id AND m.position = r.position
                    AND NOT m.partial AND octet_length(m.content) <= 8192
            ) END,
            'event', CASE WHEN r.visible_to = r.org_id AND octet_length(NEW.payload) <= 8192
                THEN NEW.payload::json -> 'data' END
        )::text
    FROM runs r JOIN webhook_endpoints w ON w.org_id = r.org_id
    WHERE r.id = NEW.run_id AND w.is_enabled AND NEW.type = ANY (w.event_types)
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
"""


def upgrade() -> None:
    op.execute(_FUNCTION)
