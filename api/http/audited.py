"""Audit entries of requests: the actor, the address and the program are those of the request."""

from collections.abc import Mapping
from decimal import Decimal
from uuid import UUID

from flask import request

from arkloop.api.http.current import actor, connections
from arkloop.shared.audit import audit_log
from arkloop.shared.audit.audit_log import AppendLater, By, Detail, NewEntry, Origin
from arkloop.shared.storage.connections import Transaction


def record(
    tx: Transaction, action: str, target_type: str, target_id: object, **details: Detail
) -> None:
    """Append what the actor of this request has done; call it last in the transaction."""
    target = (target_type, target_id)
    audit_log.append(tx, _entry(actor().org_id, action, By.actor(actor()), target, details))


def record_login(tx: Transaction, action: str, *, user_id: UUID, org_id: UUID) -> None:
    """Append what somebody has done who had no token yet, but the password of this user."""
    by = By(type="user", user_id=user_id)
    audit_log.append(tx, _entry(org_id, action, by, ("user", user_id), {}))


def record_failed_login(*, user_id: UUID, org_id: UUID) -> None:
    """Append, beside the response, that somebody did not know the password of this user.

    The response must not take longer than that for a login that does not exist.
    """
    entry = _entry(org_id, "auth.login_failed", audit_log.UNKNOWN, ("user", user_id), {})
    connections().notify(AppendLater(entry))


def _entry(
    org_id: UUID,
    action: str,
    by: By,
    target: tuple[str, object] | None,
    details: Mapping[str, Detail],
) -> NewEntry:
    origin = Origin(ip=request.remote_addr, user_agent=request.headers.get("User-Agent"))
    return NewEntry(
        org_id=org_id, action=action, by=by, target=target, details=details, origin=origin
    )


def texts_of(limits: Mapping[str, Decimal | None]) -> dict[str, Detail]:
    """Return limits as details: an entry has no fractions, which readers write differently."""
    return {name: None if limit is None else str(limit) for name, limit in limits.items()}
