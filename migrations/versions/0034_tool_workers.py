"""Tools that run in workers of the customer: what they have registered, and the queue of calls.

Revision ID: 0034
Revises: 0033
"""

from alembic import op

revision = "0034"
down_revision = "0033"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE worker_tools (
            org_id uuid NOT NULL
                CONSTRAINT fk_worker_tools_org_id REFERENCES orgs (id) ON DELETE CASCADE,
            pool text NOT NULL,
            name text NOT NULL,
            description text NOT NULL,
            parameters jsonb NOT NULL,
            idempotent boolean NOT NULL,
            timeout_seconds double precision NOT NULL,
            hash text NOT NULL,
            updated_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT pk_worker_tools PRIMARY KEY (org_id, pool, name)
        )
        """
    )
    op.execute(
        """
        CREATE TABLE worker_calls (
            id uuid CONSTRAINT pk_worker_calls PRIMARY KEY,
            run_id uuid NOT NULL
                CONSTRAINT fk_worker_calls_run_id REFERENCES runs (id) ON DELETE CASCADE,
            tool_call_id text NOT NULL,
            org_id uuid NOT NULL,
            pool text NOT NULL,
            tool text NOT NULL,
            request text NOT NULL,
            idempotent boolean NOT NULL,
            timeout_seconds double precision NOT NULL,
            owner uuid NOT NULL,
            state text NOT NULL DEFAULT 'queued',
            fence bigint NOT NULL DEFAULT 0,
            worker_id text,
            heard_at timestamptz,
            lease_expires_at timestamptz,
            deadline timestamptz NOT NULL,
            cancel_requested_at timestamptz,
            output text,
            is_error boolean,
            images jsonb,
            created_at timestamptz NOT NULL DEFAULT now(),
            ended_at timestamptz,
            CONSTRAINT uq_worker_calls_run_id_tool_call_id UNIQUE (run_id, tool_call_id)
        )
        """
    )
    op.execute(
        "CREATE INDEX ix_worker_calls_org_id_pool_id ON worker_calls (org_id, pool, id)"
        " WHERE state = 'queued'"
    )
    op.execute(
        "CREATE INDEX ix_worker_calls_org_id_pool_worker_id"
        " ON worker_calls (org_id, pool, worker_id) WHERE state = 'leased'"
    )
