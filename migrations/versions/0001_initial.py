"""Accounts, threads, runs and their events.

Revision ID: 0001
"""

from alembic import op

revision = "0001"
down_revision = None

_STATEMENTS = """
CREATE TABLE orgs (
    id UUID NOT NULL,
    name TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_orgs PRIMARY KEY (id)
);

CREATE TABLE users (
    id UUID NOT NULL,
    login TEXT NOT NULL,
    email TEXT NOT NULL,
    password_hash TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_users PRIMARY KEY (id)
);
CREATE UNIQUE INDEX uq_users_email ON users (lower(email));
CREATE UNIQUE INDEX uq_users_login ON users (lower(login));

CREATE TABLE workers (
    id UUID NOT NULL,
    hostname TEXT NOT NULL,
    pid INTEGER NOT NULL,
    lock_key BIGINT NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    seen_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_workers PRIMARY KEY (id)
);

CREATE TABLE api_keys (
    id UUID NOT NULL,
    org_id UUID NOT NULL,
    user_id UUID NOT NULL,
    name TEXT NOT NULL,
    key_prefix TEXT NOT NULL,
    key_hash TEXT NOT NULL,
    scopes TEXT[] NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE,
    revoked_at TIMESTAMP WITH TIME ZONE,
    last_used_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_api_keys PRIMARY KEY (id),
    CONSTRAINT fk_api_keys_org_id FOREIGN KEY(org_id) REFERENCES orgs (id) ON DELETE CASCADE,
    CONSTRAINT fk_api_keys_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT uq_api_keys_key_hash UNIQUE (key_hash)
);
CREATE INDEX ix_api_keys_org_id_created_at_id ON api_keys (org_id, created_at, id);

CREATE TABLE idempotency_keys (
    org_id UUID NOT NULL,
    actor_id UUID NOT NULL,
    path TEXT NOT NULL,
    key TEXT NOT NULL,
    request_hash TEXT NOT NULL,
    status INTEGER NOT NULL,
    headers JSONB NOT NULL,
    body TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_idempotency_keys PRIMARY KEY (org_id, actor_id, path, key),
    CONSTRAINT fk_idempotency_keys_org_id FOREIGN KEY(org_id) REFERENCES orgs (id) ON DELETE CASCADE
);
CREATE INDEX ix_idempotency_keys_created_at ON idempotency_keys (created_at);

CREATE TABLE memberships (
    user_id UUID NOT NULL,
    org_id UUID NOT NULL,
    role TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_memberships PRIMARY KEY (user_id),
    CONSTRAINT fk_memberships_org_id FOREIGN KEY(org_id) REFERENCES orgs (id) ON DELETE CASCADE,
    CONSTRAINT fk_memberships_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_memberships_org_id ON memberships (org_id);

CREATE TABLE refresh_tokens (
    id UUID NOT NULL,
    family_id UUID NOT NULL,
    user_id UUID NOT NULL,
    token_hash TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    rotated_at TIMESTAMP WITH TIME ZONE,
    revoked_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_refresh_tokens PRIMARY KEY (id),
    CONSTRAINT fk_refresh_tokens_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT uq_refresh_tokens_token_hash UNIQUE (token_hash)
);
CREATE INDEX ix_refresh_tokens_family_id ON refresh_tokens (family_id);
CREATE INDEX ix_refresh_tokens_user_id ON refresh_tokens (user_id);

CREATE TABLE threads (
    id UUID NOT NULL,
    org_id UUID NOT NULL,
    created_by_user_id UUID NOT NULL,
    title TEXT,
    is_private BOOLEAN DEFAULT false NOT NULL,
    next_position BIGINT DEFAULT 1 NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    deleted_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_threads PRIMARY KEY (id),
    CONSTRAINT fk_threads_created_by_user_id FOREIGN KEY(created_by_user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_threads_org_id FOREIGN KEY(org_id) REFERENCES orgs (id) ON DELETE CASCADE
);
CREATE INDEX ix_threads_org_id_created_at_id ON threads (org_id, created_at, id);

CREATE TABLE runs (
    id UUID NOT NULL,
    org_id UUID NOT NULL,
    thread_id UUID NOT NULL,
    created_by_user_id UUID NOT NULL,
    trace_id TEXT NOT NULL,
    persona_id TEXT NOT NULL,
    route_id TEXT NOT NULL,
    model TEXT NOT NULL,
    position BIGINT NOT NULL,
    state TEXT NOT NULL,
    fence BIGINT DEFAULT 0 NOT NULL,
    owner UUID,
    attempt INTEGER DEFAULT 0 NOT NULL,
    crashes INTEGER DEFAULT 0 NOT NULL,
    resume_reason TEXT,
    cancel_requested_at TIMESTAMP WITH TIME ZONE,
    cancel_requested_by UUID,
    pending_input JSONB,
    input_expires_at TIMESTAMP WITH TIME ZONE,
    queued_at TIMESTAMP WITH TIME ZONE NOT NULL,
    enqueue_at TIMESTAMP WITH TIME ZONE,
    enqueues INTEGER DEFAULT 0 NOT NULL,
    waiting_since TIMESTAMP WITH TIME ZONE,
    waiting_ms BIGINT DEFAULT 0 NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE,
    ended_at TIMESTAMP WITH TIME ZONE,
    error_code TEXT,
    error_message TEXT,
    error_retryable BOOLEAN,
    input_tokens BIGINT DEFAULT 0 NOT NULL,
    output_tokens BIGINT DEFAULT 0 NOT NULL,
    cache_read_tokens BIGINT DEFAULT 0 NOT NULL,
    usage_source TEXT DEFAULT 'reported' NOT NULL,
    cost_usd NUMERIC(18, 8) DEFAULT 0 NOT NULL,
    superseded_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_runs PRIMARY KEY (id),
    CONSTRAINT fk_runs_created_by_user_id FOREIGN KEY(created_by_user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_runs_org_id FOREIGN KEY(org_id) REFERENCES orgs (id) ON DELETE CASCADE,
    CONSTRAINT fk_runs_thread_id FOREIGN KEY(thread_id) REFERENCES threads (id) ON DELETE CASCADE
);
CREATE INDEX ix_runs_ended_at ON runs (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX ix_runs_enqueue_at ON runs (enqueue_at) WHERE state = 'queued';
CREATE INDEX ix_runs_input_expires_at ON runs (input_expires_at) WHERE state = 'waiting';
CREATE INDEX ix_runs_org_id_created_at_id ON runs (org_id, created_at, id);
CREATE INDEX ix_runs_org_id_state_created_at_id ON runs (org_id, state, created_at, id);
CREATE INDEX ix_runs_owner ON runs (owner) WHERE state = 'executing';
CREATE INDEX ix_runs_thread_id_created_at_id ON runs (thread_id, created_at, id);
CREATE UNIQUE INDEX uq_runs_active_thread_id ON runs (thread_id) WHERE state IN ('queued', 'executing', 'waiting');

CREATE TABLE inputs (
    run_id UUID NOT NULL,
    request_id UUID NOT NULL,
    content TEXT NOT NULL,
    created_by_user_id UUID NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    consumed_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_inputs PRIMARY KEY (run_id, request_id),
    CONSTRAINT fk_inputs_created_by_user_id FOREIGN KEY(created_by_user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_inputs_run_id FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
);

CREATE TABLE messages (
    id UUID NOT NULL,
    org_id UUID NOT NULL,
    thread_id UUID NOT NULL,
    run_id UUID,
    created_by_user_id UUID,
    position BIGINT NOT NULL,
    role TEXT NOT NULL,
    content TEXT NOT NULL,
    partial BOOLEAN DEFAULT false NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    superseded_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_messages PRIMARY KEY (id),
    CONSTRAINT fk_messages_created_by_user_id FOREIGN KEY(created_by_user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_messages_org_id FOREIGN KEY(org_id) REFERENCES orgs (id) ON DELETE CASCADE,
    CONSTRAINT fk_messages_run_id FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE SET NULL,
    CONSTRAINT fk_messages_thread_id FOREIGN KEY(thread_id) REFERENCES threads (id) ON DELETE CASCADE,
    CONSTRAINT uq_messages_thread_id_position UNIQUE (thread_id, position)
);
CREATE INDEX ix_messages_run_id ON messages (run_id);

CREATE TABLE run_events (
    run_id UUID NOT NULL,
    seq BIGINT NOT NULL,
    type TEXT NOT NULL,
    payload TEXT NOT NULL,
    CONSTRAINT pk_run_events PRIMARY KEY (run_id, seq),
    CONSTRAINT fk_run_events_run_id FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
);

CREATE TABLE tool_calls (
    run_id UUID NOT NULL,
    tool_call_id TEXT NOT NULL,
    fence BIGINT NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_tool_calls PRIMARY KEY (run_id, tool_call_id),
    CONSTRAINT fk_tool_calls_run_id FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
);
"""


def upgrade() -> None:
    op.execute(_STATEMENTS)
