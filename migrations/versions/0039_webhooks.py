"""Webhook endpoints, and the deliveries that events of runs become.

Revision ID: 0039
Revises: 0038
"""

from alembic import op

revision = "0039"
down_revision = "0038"

# A trigger, and not the code that writes the events: runs end, wait and are cancelled in many
# places, some of them in processes of the release before. What it adds is in the transaction of the
# event. Of events of other types it costs the check of a condition.
# The id is a UUIDv7, which Postgres 17 cannot make.
_STATEMENTS = """
CREATE TABLE webhook_endpoints (
    id uuid NOT NULL,
    org_id uuid NOT NULL,
    url text NOT NULL,
    description text NOT NULL,
    event_types text[] NOT NULL,
    is_enabled boolean DEFAULT true NOT NULL,
    disabled_reason text,
    failing_since timestamptz,
    secret_encrypted bytea NOT NULL,
    former_secret_encrypted bytea,
    former_secret_until timestamptz,
    created_at timestamptz DEFAULT now() NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_webhook_endpoints PRIMARY KEY (id),
    CONSTRAINT fk_webhook_endpoints_org_id FOREIGN KEY (org_id) REFERENCES orgs (id)
        ON DELETE CASCADE
);

CREATE INDEX ix_webhook_endpoints_org_id ON webhook_endpoints (org_id);

CREATE TABLE webhook_deliveries (
    id uuid NOT NULL,
    endpoint_id uuid NOT NULL,
    org_id uuid NOT NULL,
    type text NOT NULL,
    run_id uuid,
    ordered_by uuid NOT NULL,
    seq bigint NOT NULL,
    data text NOT NULL,
    state text DEFAULT 'pending' NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    due_at timestamptz DEFAULT now() NOT NULL,
    leased_until timestamptz,
    tried_since timestamptz,
    tried_at timestamptz,
    response_status integer,
    error text,
    delivered_at timestamptz,
    created_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_webhook_deliveries PRIMARY KEY (id),
    CONSTRAINT uq_webhook_deliveries_endpoint_id_ordered_by_seq
        UNIQUE (endpoint_id, ordered_by, seq)
);

CREATE INDEX ix_webhook_deliveries_pending_endpoint_id_due_at
    ON webhook_deliveries (endpoint_id, due_at) WHERE state = 'pending';
CREATE INDEX ix_webhook_deliveries_dead_endpoint_id_created_at_id
    ON webhook_deliveries (endpoint_id, created_at, id) WHERE state = 'dead';
CREATE INDEX ix_webhook_deliveries_endpoint_id_created_at_id
    ON webhook_deliveries (endpoint_id, created_at, id);
CREATE INDEX ix_webhook_deliveries_created_at ON webhook_deliveries (created_at);

CREATE FUNCTION events_have_their_deliveries() RETURNS trigger LANGUAGE plpgsql AS $$
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
            'metadata', r.metadata,
            'output', (
                SELECT content FROM messages m
                WHERE m.thread_id = r.thread_id AND m.position = r.position
                    AND NOT m.partial AND octet_length(m.content) <= 8192
            ),
            'event',
                CASE WHEN octet_length(NEW.payload) <= 8192 THEN NEW.payload::json -> 'data' END
        )::text
    FROM runs r JOIN webhook_endpoints w ON w.org_id = r.org_id
    WHERE r.id = NEW.run_id AND w.is_enabled AND NEW.type = ANY (w.event_types)
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE TRIGGER events_have_their_deliveries AFTER INSERT ON run_events
    FOR EACH ROW WHEN (
        NEW.type IN ('run.completed', 'run.failed', 'run.cancelled', 'run.waiting_for_input')
    ) EXECUTE FUNCTION events_have_their_deliveries();
"""


def upgrade() -> None:
    op.execute(_STATEMENTS)
