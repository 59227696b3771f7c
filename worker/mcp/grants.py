"""Grants: what is kept of an authorization between two processes."""

import time
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

#: For which the end of a request waits for tokens on their way.
SETTLE_SECONDS = 5.0


def has_expired(grant: Mapping[str, Any]) -> bool:
    """Return whether the access token has expired, as far as its server has said when."""
    expires_at = grant.get("expires_at")
    return expires_at is not None and expires_at < time.time()


def may_have_expired(grant: Mapping[str, Any]) -> bool:
    """Return whether the access token has expired, or the server has not said when it does."""
    return grant.get("expires_at") is None or has_expired(grant)


def is_refreshable(grant: Mapping[str, Any]) -> bool:
    """Return whether there is a token to refresh the access token with."""
    return bool(grant["tokens"].get("refresh_token"))


def has_secret_expired(expires_at: int | None) -> bool:
    """Return whether a client's secret has expired; 0 means that it never does."""
    return 0 < (expires_at or 0) < time.time()


def tokens_of(access: Mapping[str, Any] | None) -> list[str]:
    """Return the texts of the tokens of a request's `access`."""
    tokens = ((access or {}).get("grant") or {}).get("tokens") or {}
    return [tokens[name] for name in ("access_token", "refresh_token") if tokens.get(name)]


def plain(model: BaseModel | None) -> dict[str, Any] | None:
    """Return the fields of one of the SDK's models, to be kept."""
    return None if model is None else model.model_dump(mode="json", exclude_none=True)


def parsed(kind: Any, fields: Mapping[str, Any] | None) -> Any:
    """Return the model of a kind whose fields were kept."""
    return None if fields is None else kind.model_validate(fields)
