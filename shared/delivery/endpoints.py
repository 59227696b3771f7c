"""An org's webhook endpoints: where events go, which ones, and the secrets of their signatures.

The signing secret is made here, shown once, and replaced by `rotate`; for a while after that
requests are signed by the former one, too.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, and_, delete, func, select, update
from sqlalchemy.sql import ColumnElement

from arkloop.shared.config import Settings
from arkloop.shared.errors import InvalidRequest, WebhookEndpointNotFound
from arkloop.shared.ids import new_id
from arkloop.shared.sealing import org_keys
from arkloop.shared.sealing.sealed_columns import column_of
from arkloop.shared.security import egress, encryption, signatures
from arkloop.shared.storage import org_locks
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.pages import Place, after, newest
from arkloop.shared.storage.tables.delivery import webhook_endpoints

MAX_ENDPOINTS = 20  # of one org
MAX_OVERLAP_SECONDS = 7 * 86_400
#: Processes look no more often who has endpoints. With more orgs than this all are taken to have
#: one.
MAX_KNOWN_ORGS = 10_000

BUDGET_TYPE = "budget.threshold_reached"
#: The types of events that endpoints may subscribe to.
EVENT_TYPES = (
    "run.completed",
    "run.failed",
    "run.cancelled",
    "run.waiting_for_input",
    BUDGET_TYPE,
)

PURPOSE = "webhook_endpoints.secret"
SEALED = tuple(
    column_of(webhook_endpoints, name, PURPOSE)
    for name in ("secret_encrypted", "former_secret_encrypted")
)
#: All but the secrets.
_SHOWN = [c for c in webhook_endpoints.c if not c.name.endswith("secret_encrypted")]


def create(
    tx: Transaction, org_id: UUID, *, url: str, description: str, event_types: Sequence[str]
) -> tuple[Row[Any], str]:
    """Create an endpoint; returns its row and its signing secret, which nobody can read again.

    Raises:
        InvalidRequest: an address that may not be reached, no key to encrypt the secret, or the
            org has `MAX_ENDPOINTS` already.
    """
    settings = tx.connections.settings
    _check_url(settings, url)
    # One at a time in an org, so that each counts those of the others.
    org_locks.lock(tx, org_id)
    count = select(func.count()).where(webhook_endpoints.c.org_id == org_id)
    if (tx.sql.scalar(count) or 0) >= MAX_ENDPOINTS:
        raise InvalidRequest(url=[f"limit reached: {MAX_ENDPOINTS} endpoints per organization"])
    endpoint_id, secret = new_id(), signatures.new_secret()
    tx.sql.execute(
        webhook_endpoints.insert().values(
            id=endpoint_id,
            org_id=org_id,
            url=url,
            description=description,
            event_types=list(event_types),
            secret_encrypted=_sealed(tx, org_id, secret),
        )
    )
    return find(tx.sql, org_id, endpoint_id), secret


def change(
    tx: Transaction, org_id: UUID, endpoint_id: UUID, changes: Mapping[str, Any]
) -> Row[Any]:
    """Change fields of an endpoint; attempts that begin later are made by the new values.

    Raises:
        WebhookEndpointNotFound
        InvalidRequest: an address that may not be reached.
    """
    values = dict(changes)
    if "url" in values:
        _check_url(tx.connections.settings, values["url"])
    if "enabled" in values:
        values["is_enabled"] = values.pop("enabled")
        values["disabled_reason"] = None
    _write(tx, org_id, endpoint_id, values)
    return find(tx.sql, org_id, endpoint_id)


def rotate(
    tx: Transaction, org_id: UUID, endpoint_id: UUID, overlap_seconds: float
) -> tuple[Row[Any], str]:
    """Replace the signing secret; returns the row and the new one.

    For `overlap_seconds` requests are signed by the one before, too. Of three secrets within that
    time the oldest is dropped.

    Raises:
        WebhookEndpointNotFound
    """
    secret = signatures.new_secret()
    overlap = func.make_interval(0, 0, 0, 0, 0, 0, overlap_seconds)
    _write(
        tx,
        org_id,
        endpoint_id,
        {
            "former_secret_encrypted": webhook_endpoints.c.secret_encrypted,
            "former_secret_until": func.now() + overlap,
            "secret_encrypted": _sealed(tx, org_id, secret),
        },
    )
    return find(tx.sql, org_id, endpoint_id), secret


def remove(tx: Transaction, org_id: UUID, endpoint_id: UUID) -> None:
    """Delete the endpoint; nothing is delivered to it any more. Raises: WebhookEndpointNotFound."""
    if tx.sql.execute(delete(webhook_endpoints).where(_is(org_id, endpoint_id))).rowcount == 0:
        raise WebhookEndpointNotFound()


def find(sql: Connection, org_id: UUID, endpoint_id: UUID) -> Row[Any]:
    """Find the endpoint, without its secrets. Raises: WebhookEndpointNotFound."""
    row = sql.execute(select(*_SHOWN).where(_is(org_id, endpoint_id))).one_or_none()
    if row is None:
        raise WebhookEndpointNotFound()
    return row


def list_(sql: Connection, org_id: UUID, *, limit: int, before: Place | None) -> list[Row[Any]]:
    """List endpoints as `find` returns them, newest first."""
    query = select(*_SHOWN).where(webhook_endpoints.c.org_id == org_id)
    page = newest(query, webhook_endpoints, limit=limit, is_deep=before is not None)
    return list(sql.execute(page, after(before)))


# ---- for workers ---------------------------------------------------------------------


def counts(sql: Connection) -> Mapping[UUID, int] | None:
    """Return how many enabled endpoints each org has that has any; None if they are very many."""
    of_each = (
        select(webhook_endpoints.c.org_id, func.count().label("number"))
        .where(webhook_endpoints.c.is_enabled)
        .group_by(webhook_endpoints.c.org_id)
        .limit(MAX_KNOWN_ORGS + 1)
    )
    found = {row.org_id: row.number for row in sql.execute(of_each)}
    return None if len(found) > MAX_KNOWN_ORGS else found


def secrets_of(settings: Settings, claimed: Row[Any]) -> list[str]:
    """Return the signing secrets for a claimed delivery that are valid now, the newest first.

    A former one that cannot be decrypted, such as one from before the org's key was erased, is left
    out.

    Raises:
        encryption.NoEncryptionKey, encryption.CannotOpen
    """
    keyring = encryption.keyring(settings.encryption_key)
    opened = partial(
        org_keys.opened, keyring, claimed.org_key, org_id=claimed.org_id, purpose=PURPOSE
    )
    secrets = [opened(claimed.secret_encrypted)]
    if claimed.has_former_secret:
        with suppress(encryption.CannotOpen):
            secrets.append(opened(claimed.former_secret_encrypted))
    return secrets


def _check_url(settings: Settings, url: str) -> None:
    try:
        egress.check_url(url, egress.Policy.of(settings.allowed_networks))
    except egress.Refused as refused:
        raise InvalidRequest(url=[str(refused)]) from None
    if "#" in url:
        raise InvalidRequest(url=["must have no fragment"])


def _sealed(tx: Transaction, org_id: UUID, secret: str) -> bytes:
    keyring = encryption.keyring(tx.connections.settings.encryption_key)
    try:
        return org_keys.seal(tx, keyring, secret, org_id=org_id, purpose=PURPOSE)
    except encryption.NoEncryptionKey as error:
        raise InvalidRequest(signing_secret=[str(error)]) from None


def _write(tx: Transaction, org_id: UUID, endpoint_id: UUID, values: Mapping[str, Any]) -> None:
    statement = update(webhook_endpoints).where(_is(org_id, endpoint_id))
    if tx.sql.execute(statement.values(**values, updated_at=func.now())).rowcount == 0:
        raise WebhookEndpointNotFound()


def _is(org_id: UUID, endpoint_id: UUID) -> ColumnElement[bool]:
    return and_(webhook_endpoints.c.id == endpoint_id, webhook_endpoints.c.org_id == org_id)
