"""The tables of what an org brings itself: providers with their models, personas, MCP servers."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Numeric,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from arkloop.shared.storage.tables.columns import created_at_, id_, metadata, ref_, time_


def _updated_at() -> Column[object]:
    return Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now())


#: A vendor's account, or a server of one's own.
llm_providers = Table(
    "llm_providers",
    metadata,
    id_(),
    ref_("org_id", "orgs.id"),
    Column("name", Text, nullable=False),
    Column("kind", Text, nullable=False),  # openai | anthropic
    Column("base_url", Text),  # null: the vendor's own
    Column("platform", Text),  # one of `platforms.PLATFORMS`; null: none
    Column("region", Text),
    Column("project_id", Text),
    Column("api_version", Text),
    Column("api_key_encrypted", LargeBinary),  # an API key, or credentials as a JSON object
    Column("api_key_last_four", Text),
    created_at_(),
    _updated_at(),
    UniqueConstraint("org_id", "name"),
)

#: A model of a provider is a route: its id is the runs' `route_id`.
llm_models = Table(
    "llm_models",
    metadata,
    id_(),
    ref_("org_id", "orgs.id"),
    ref_("provider_id", "llm_providers.id"),
    Column("model", Text, nullable=False),
    #: The lower comes first when a run of the default route falls back; null: never.
    Column("priority", Integer),
    Column("is_default", Boolean, nullable=False, server_default=text("false")),
    #: USD per million tokens; null: what the price library says.
    Column("input_price", Numeric(18, 8)),
    Column("output_price", Numeric(18, 8)),
    Column("cache_read_price", Numeric(18, 8)),
    Column("cache_write_price", Numeric(18, 8)),
    Column("api", Text),  # responses | chat; null: chosen by the address
    Column("max_output_tokens", Integer),
    Column("context_tokens", Integer),  # null: what the price library says, else no limit is known
    Column("first_byte_seconds", Integer),  # null: the default of routes
    Column("idle_seconds", Integer),  # likewise
    Column("accepts", JSONB),  # of `model_routes.ATTACHMENTS`; null: all that the API has
    Column("model_settings", JSONB),  # of `model_settings.py`; null: none
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", BigInteger),
    created_at_(),
    _updated_at(),
    UniqueConstraint("provider_id", "model"),
    Index("ix_llm_models_org_id", "org_id"),
    Index(
        "uq_llm_models_default_org_id",
        "org_id",
        unique=True,
        postgresql_where=text("is_default"),
    ),
)

#: Published by an org; never changed afterwards.
personas = Table(
    "personas",
    metadata,
    Column("org_id", Uuid, ForeignKey("orgs.id", ondelete="CASCADE"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("version", Text, primary_key=True),
    Column("definition", JSONB, nullable=False),  # the fields of `personas.Persona` that were given
    ref_("created_by_user_id", "users.id"),
    created_at_(),
)

#: A tool of an org that runs call by HTTP.
http_tools = Table(
    "http_tools",
    metadata,
    id_(),
    ref_("org_id", "orgs.id"),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("parameters", Text, nullable=False),  # JSON, in the order in which models write them
    Column("idempotent", Boolean, nullable=False),
    Column("timeout_seconds", Float(53), nullable=False),
    Column("url", Text, nullable=False),
    Column("headers_encrypted", LargeBinary),  # a JSON object
    Column("header_names", JSONB, nullable=False, server_default=text("'[]'")),
    Column("secret_encrypted", LargeBinary, nullable=False),  # of its signatures
    Column("former_secret_encrypted", LargeBinary),  # calls are signed by it, too, until then
    time_("former_secret_until"),
    created_at_(),
    _updated_at(),
    UniqueConstraint("org_id", "name"),
)

mcp_configs = Table(
    "mcp_configs",
    metadata,
    id_(),
    ref_("org_id", "orgs.id"),
    Column("name", Text, nullable=False),
    Column("transport", Text, nullable=False),  # streamable_http | stdio
    Column("url", Text),
    Column("command", JSONB),  # of stdio: the program and its arguments, a list
    Column("headers_encrypted", LargeBinary),  # a JSON object
    Column("header_names", JSONB, nullable=False, server_default=text("'[]'")),
    Column("oauth", JSONB),  # {"client_id"}; null: the server requires no authorization by people
    Column("client_secret_encrypted", LargeBinary),
    created_at_(),
    _updated_at(),
    time_("tried_at"),  # when its tools were asked for; null: they are to be asked for
    time_("discovered_at"),  # when that went well last
    Column("discovery_error", Text),  # of the last attempt; null: it went well
    UniqueConstraint("org_id", "name"),
)

#: A tool as its server described it; it is offered to a model where both hashes are the same.
mcp_tools = Table(
    "mcp_tools",
    metadata,
    Column("config_id", Uuid, ForeignKey("mcp_configs.id", ondelete="CASCADE"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("description", Text, nullable=False),
    Column("parameters", JSONB, nullable=False),
    Column("hash", Text, nullable=False),  # SHA-256 of name, description and parameters
    Column("problem", Text),  # why it cannot be offered at all; null: it can
    Column("approved_hash", Text),  # null: not approved
    time_("approved_at"),
    Column("seen_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

#: Access to a server that somebody has granted: tokens, and what is needed to refresh them.
mcp_grants = Table(
    "mcp_grants",
    metadata,
    Column("config_id", Uuid, ForeignKey("mcp_configs.id", ondelete="CASCADE"), primary_key=True),
    Column("owner", Text, primary_key=True),  # see `mcp_access.py`
    Column("grant_encrypted", LargeBinary, nullable=False),  # a JSON object
    time_("obtained_at", required=True),  # when the authorization server gave the tokens
    time_("client_registered_at"),  # null: by an admin, or at a time that is not known
    Index("ix_mcp_grants_config_id_client_registered_at", "config_id", "client_registered_at"),
)

#: Requests for access: pages that somebody has to visit, and the code that comes back.
mcp_authorizations = Table(
    "mcp_authorizations",
    metadata,
    Column("state_hash", LargeBinary, primary_key=True),  # SHA-256 of the `state` in the address
    Column("config_id", Uuid, ForeignKey("mcp_configs.id", ondelete="CASCADE"), nullable=False),
    Column("owner", Text, nullable=False),
    Column("run_id", Uuid),  # the run that waits; null: a discovery
    Column("request_encrypted", LargeBinary, nullable=False),  # a JSON object, later with the code
    created_at_(),
    time_("expires_at", required=True),
    time_("answered_at"),  # when the code came; null: not yet
    Index("ix_mcp_authorizations_config_id_owner", "config_id", "owner"),
)

#: Tools that workers of the customer have registered, by the pool of these workers.
worker_tools = Table(
    "worker_tools",
    metadata,
    Column("org_id", Uuid, ForeignKey("orgs.id", ondelete="CASCADE"), primary_key=True),
    Column("pool", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("description", Text, nullable=False),
    Column("parameters", JSONB, nullable=False),
    Column("idempotent", Boolean, nullable=False),
    Column("timeout_seconds", Double, nullable=False),
    Column("hash", Text, nullable=False),  # SHA-256 of all of these
    _updated_at(),
)
