"""The secrets of an MCP server's config: its headers, and the secret of our OAuth client there."""

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from arkloop.shared.catalog import mcp_access
from arkloop.shared.config import Settings
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.sealing import org_keys
from arkloop.shared.security import encryption
from arkloop.shared.storage import org_urls
from arkloop.shared.storage.connections import Transaction

HEADERS_PURPOSE, CLIENT_SECRET_PURPOSE = "mcp_configs.headers", "mcp_configs.client_secret"


def header_values(tx: Transaction, org_id: UUID, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the columns that keep these headers. Raises: InvalidRequest: there is no key."""
    if not headers:
        return {"headers_encrypted": None, "header_names": []}
    try:
        sealed = _sealed(tx, json.dumps(dict(headers)), org_id, HEADERS_PURPOSE)
    except encryption.NoEncryptionKey as error:
        raise InvalidRequest(headers=[str(error)]) from None
    return {"headers_encrypted": sealed, "header_names": sorted(headers)}


def oauth_values(tx: Transaction, org_id: UUID, oauth: Mapping[str, str] | None) -> dict[str, Any]:
    """Return the columns that keep `{client_id?, client_secret?}`, or None for no OAuth.

    Raises:
        InvalidRequest: the server has no key for tokens, or no address to come back to.
    """
    if oauth is None:
        return {"oauth": None, "client_secret_encrypted": None}
    own_url = org_urls.find(tx.sql, org_id)
    if mcp_access.redirect_uri(tx.connections.settings, own_url) is None:
        raise InvalidRequest(oauth=["ARKLOOP_PUBLIC_URL is not set on this server"])
    try:
        # Without a secret, too: tokens could not be kept.
        sealed = _sealed(tx, oauth.get("client_secret", ""), org_id, CLIENT_SECRET_PURPOSE)
    except encryption.NoEncryptionKey as error:
        raise InvalidRequest(oauth=[str(error)]) from None
    return {
        "oauth": {"client_id": oauth.get("client_id")},
        "client_secret_encrypted": sealed if "client_secret" in oauth else None,
    }


def headers_of(settings: Settings, row: Row[Any]) -> dict[str, str]:
    """Return the headers of a row of `mcp_configs.of_names`.

    Raises:
        encryption.NoEncryptionKey, encryption.CannotOpen
    """
    if row.headers_encrypted is None:
        return {}
    text = _opened(settings, row, row.headers_encrypted, HEADERS_PURPOSE)
    headers: dict[str, str] = json.loads(text)
    return headers


def oauth_of(settings: Settings, row: Row[Any]) -> dict[str, str | None] | None:
    """Return `{client_id, client_secret, redirect_uri}` of such a row; None: it has no OAuth.

    Raises:
        encryption.NoEncryptionKey, encryption.CannotOpen
    """
    if row.oauth is None:
        return None
    secret = None
    if row.client_secret_encrypted is not None:
        secret = _opened(settings, row, row.client_secret_encrypted, CLIENT_SECRET_PURPOSE)
    return {
        "client_id": row.oauth["client_id"],
        "client_secret": secret,
        "redirect_uri": mcp_access.redirect_uri(settings, row.own_url),
    }


def _sealed(tx: Transaction, text: str, org_id: UUID, purpose: str) -> bytes:
    keyring = encryption.keyring(tx.connections.settings.encryption_key)
    return org_keys.seal(tx, keyring, text, org_id=org_id, purpose=purpose)


def _opened(settings: Settings, row: Row[Any], sealed: bytes, purpose: str) -> str:
    keyring = encryption.keyring(settings.encryption_key)
    return org_keys.opened(keyring, row.org_key, sealed, org_id=row.org_id, purpose=purpose)
