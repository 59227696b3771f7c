"""The columns of the catalog that have encrypted secrets."""

from arkloop.shared.catalog import http_tools, llm_providers, mcp_access, mcp_secrets
from arkloop.shared.sealing.sealed_columns import SealedColumn, column_of
from arkloop.shared.storage.tables import catalog as tables

_OF_CONFIG = tables.mcp_configs.c.org_id

SEALED = (
    column_of(tables.llm_providers, "api_key_encrypted", llm_providers.API_KEY_PURPOSE),
    column_of(tables.http_tools, "headers_encrypted", http_tools.HEADERS_PURPOSE),
    column_of(tables.http_tools, "secret_encrypted", http_tools.SECRET_PURPOSE),
    column_of(tables.http_tools, "former_secret_encrypted", http_tools.SECRET_PURPOSE),
    column_of(tables.mcp_configs, "headers_encrypted", mcp_secrets.HEADERS_PURPOSE),
    column_of(tables.mcp_configs, "client_secret_encrypted", mcp_secrets.CLIENT_SECRET_PURPOSE),
    SealedColumn(
        tables.mcp_grants.c.grant_encrypted,
        mcp_access.GRANT_PURPOSE,
        _OF_CONFIG,
        tables.mcp_grants.join(tables.mcp_configs),
    ),
    SealedColumn(
        tables.mcp_authorizations.c.request_encrypted,
        mcp_access.REQUEST_PURPOSE,
        _OF_CONFIG,
        tables.mcp_authorizations.join(tables.mcp_configs),
    ),
)
