"""The tables of costs and limits, and of providers, personas and MCP servers of an org.

Revision ID: 0005
Revises: 0004
"""

from alembic import op

revision = "0005"
down_revision = "0004"

_STATEMENTS = """
ALTER TABLE runs ADD COLUMN api_key_id uuid;
ALTER TABLE runs ADD COLUMN cache_write_tokens bigint DEFAULT 0 NOT NULL;
ALTER TABLE runs ADD COLUMN reasoning_tokens bigint DEFAULT 0 NOT NULL;
ALTER TABLE inputs ALTER COLUMN created_by_user_id DROP NOT NULL;

CREATE TABLE run_usage (
    run_id UUID NOT NULL,
    route_id TEXT NOT NULL,
    org_id UUID NOT NULL,
    user_id UUID NOT NULL,
    api_key_id UUID,
    persona_key TEXT NOT NULL,
    model TEXT NOT NULL,
    input_tokens BIGINT DEFAULT 0 NOT NULL,
    output_tokens BIGINT DEFAULT 0 NOT NULL,
    cache_read_tokens BIGINT DEFAULT 0 NOT NULL,
    cache_write_tokens BIGINT DEFAULT 0 NOT NULL,
    reasoning_tokens BIGINT DEFAULT 0 NOT NULL,
    usage_source TEXT NOT NULL,
    cost_usd NUMERIC(18, 8) NOT NULL,
    ended_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    month DATE NOT NULL,
    CONSTRAINT pk_run_usage PRIMARY KEY (run_id, route_id)
);
CREATE INDEX ix_run_usage_org_id_ended_at ON run_usage (org_id, ended_at);

CREATE TABLE budgets (
    org_id UUID NOT NULL,
    scope TEXT NOT NULL,
    max_cost_usd NUMERIC(18, 8),
    max_cost_usd_per_month NUMERIC(18, 8),
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_budgets PRIMARY KEY (org_id, scope),
    CONSTRAINT fk_budgets_org_id FOREIGN KEY(org_id) REFERENCES orgs (id) ON DELETE CASCADE
);

CREATE TABLE spending (
    org_id UUID NOT NULL,
    scope TEXT NOT NULL,
    month DATE NOT NULL,
    spent_usd NUMERIC(28, 8) DEFAULT 0 NOT NULL,
    held_usd NUMERIC(28, 8) DEFAULT 0 NOT NULL,
    CONSTRAINT pk_spending PRIMARY KEY (org_id, scope, month),
    CONSTRAINT ck_spending_not_negative CHECK (spent_usd >= 0 AND held_usd >= 0),
    CONSTRAINT fk_spending_org_id FOREIGN KEY(org_id) REFERENCES orgs (id) ON DELETE CASCADE
);

CREATE TABLE holds (
    run_id UUID NOT NULL,
    org_id UUID NOT NULL,
    month DATE NOT NULL,
    scopes TEXT[] NOT NULL,
    cost_usd NUMERIC(18, 8) NOT NULL,
    held_usd NUMERIC(18, 8) NOT NULL,
    held_credits BIGINT DEFAULT 0 NOT NULL,
    CONSTRAINT pk_holds PRIMARY KEY (run_id),
    CONSTRAINT fk_holds_org_id FOREIGN KEY(org_id) REFERENCES orgs (id) ON DELETE CASCADE
);
CREATE INDEX ix_holds_org_id ON holds (org_id);

CREATE TABLE credit_balances (
    org_id UUID NOT NULL,
    balance BIGINT NOT NULL,
    held BIGINT DEFAULT 0 NOT NULL,
    CONSTRAINT pk_credit_balances PRIMARY KEY (org_id),
    CONSTRAINT ck_credit_balances_held CHECK (held >= 0 AND held <= balance),
    CONSTRAINT fk_credit_balances_org_id FOREIGN KEY(org_id) REFERENCES orgs (id) ON DELETE CASCADE
);

CREATE TABLE ledger_entries (
    id UUID NOT NULL,
    org_id UUID NOT NULL,
    kind TEXT NOT NULL,
    run_id UUID,
    debit_account TEXT NOT NULL,
    credit_account TEXT NOT NULL,
    credits BIGINT NOT NULL,
    note TEXT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_ledger_entries PRIMARY KEY (id),
    CONSTRAINT ck_ledger_entries_moves CHECK (credits > 0 AND debit_account <> credit_account)
);
CREATE INDEX ix_ledger_entries_org_id_created_at_id ON ledger_entries (org_id, created_at, id);
CREATE UNIQUE INDEX uq_ledger_entries_run_id_debit_account ON ledger_entries (run_id, debit_account) WHERE run_id IS NOT NULL;

CREATE TABLE llm_providers (
    id UUID NOT NULL,
    org_id UUID NOT NULL,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    base_url TEXT,
    api_key_encrypted BYTEA,
    api_key_last_four TEXT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_llm_providers PRIMARY KEY (id),
    CONSTRAINT uq_llm_providers_org_id_name UNIQUE (org_id, name),
    CONSTRAINT fk_llm_providers_org_id FOREIGN KEY(org_id) REFERENCES orgs (id) ON DELETE CASCADE
);

CREATE TABLE llm_models (
    id UUID NOT NULL,
    org_id UUID NOT NULL,
    provider_id UUID NOT NULL,
    model TEXT NOT NULL,
    priority INTEGER,
    is_default BOOLEAN DEFAULT false NOT NULL,
    input_price NUMERIC(18, 8),
    output_price NUMERIC(18, 8),
    cache_read_price NUMERIC(18, 8),
    cache_write_price NUMERIC(18, 8),
    max_output_tokens INTEGER,
    context_tokens INTEGER,
    requests_per_minute INTEGER,
    tokens_per_minute BIGINT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_llm_models PRIMARY KEY (id),
    CONSTRAINT uq_llm_models_provider_id_model UNIQUE (provider_id, model),
    CONSTRAINT fk_llm_models_org_id FOREIGN KEY(org_id) REFERENCES orgs (id) ON DELETE CASCADE,
    CONSTRAINT fk_llm_models_provider_id FOREIGN KEY(provider_id) REFERENCES llm_providers (id) ON DELETE CASCADE
);
CREATE INDEX ix_llm_models_org_id ON llm_models (org_id);
CREATE UNIQUE INDEX uq_llm_models_default_org_id ON llm_models (org_id) WHERE is_default;

CREATE TABLE personas (
    org_id UUID NOT NULL,
    key TEXT NOT NULL,
    version TEXT NOT NULL,
    definition JSONB NOT NULL,
    created_by_user_id UUID NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_personas PRIMARY KEY (org_id, key, version),
    CONSTRAINT fk_personas_org_id FOREIGN KEY(org_id) REFERENCES orgs (id) ON DELETE CASCADE,
    CONSTRAINT fk_personas_created_by_user_id FOREIGN KEY(created_by_user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_personas_created_by_user_id ON personas (created_by_user_id);

CREATE TABLE mcp_configs (
    id UUID NOT NULL,
    org_id UUID NOT NULL,
    name TEXT NOT NULL,
    transport TEXT NOT NULL,
    url TEXT,
    command JSONB,
    headers_encrypted BYTEA,
    header_names JSONB DEFAULT '[]' NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    tried_at TIMESTAMP WITH TIME ZONE,
    discovered_at TIMESTAMP WITH TIME ZONE,
    discovery_error TEXT,
    CONSTRAINT pk_mcp_configs PRIMARY KEY (id),
    CONSTRAINT uq_mcp_configs_org_id_name UNIQUE (org_id, name),
    CONSTRAINT fk_mcp_configs_org_id FOREIGN KEY(org_id) REFERENCES orgs (id) ON DELETE CASCADE
);

CREATE TABLE mcp_tools (
    config_id UUID NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    parameters JSONB NOT NULL,
    hash TEXT NOT NULL,
    problem TEXT,
    approved_hash TEXT,
    approved_at TIMESTAMP WITH TIME ZONE,
    seen_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_mcp_tools PRIMARY KEY (config_id, name),
    CONSTRAINT fk_mcp_tools_config_id FOREIGN KEY(config_id) REFERENCES mcp_configs (id) ON DELETE CASCADE
);

CREATE FUNCTION ledger_entries_stay() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'ledger_entries is append-only';
END $$;

CREATE TRIGGER ledger_entries_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_entries
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_entries_stay();
"""


def upgrade() -> None:
    op.execute(_STATEMENTS)
