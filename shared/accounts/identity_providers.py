"""The identity provider of an org (OpenID Connect), by which its people log in.

To choose the provider is to decide who somebody is: so only owners do, and a login by it is bound
to the org.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, any_, delete, exists, func, insert, select, update

from arkloop.shared.accounts import accounts, members
from arkloop.shared.accounts.identity_errors import (
    ClientSecretUnreadable,
    IdentityProviderNotFound,
    NoOwnerWithPassword,
)
from arkloop.shared.actors import Actor
from arkloop.shared.config import Settings
from arkloop.shared.errors import Forbidden, InvalidRequest
from arkloop.shared.ids import new_id
from arkloop.shared.sealing import org_keys
from arkloop.shared.sealing.sealed_columns import column_of
from arkloop.shared.security.encryption import CannotOpen, NoEncryptionKey, keyring
from arkloop.shared.storage import org_urls
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.accounts import (
    identities,
    identity_providers,
    memberships,
    users,
)

CALLBACK_PATH = "/v1/auth/oidc/callback"
SECRET_PURPOSE = "identity_providers.client_secret"  # noqa: S105 - what it is sealed for
SEALED = (column_of(identity_providers, "client_secret_encrypted", SECRET_PURPOSE),)
#: The roles in which people join by themselves: an owner is made by an owner.
JOINING_ROLES = ("member", "admin")
#: With one of these changed, subjects and secrets are those of somebody else.
_WHOSE = ("issuer", "client_id")


def redirect_uri(settings: Settings, own_url: str | None) -> str | None:
    """Return the address that providers send people back to, None without a public URL.

    `own_url` is that of the org, as in a row of `get`.
    """
    return org_urls.address(settings, own_url, CALLBACK_PATH)


def get(sql: Connection, org_id: UUID) -> Row[Any]:
    """Return the org's provider with the org's wrapped key, and its `own_url`.

    Raises:
        IdentityProviderNotFound
    """
    row = sql.execute(_with_key().where(identity_providers.c.org_id == org_id)).one_or_none()
    if row is None:
        raise IdentityProviderNotFound()
    return row


def open_to(sql: Connection, user_id: UUID) -> list[Row[Any]]:
    """List `org_id` and `email_domains` of the providers that could make a user a member anew.

    After an erasure nothing says that they have been one. Their people join by their address, and
    the provider knows the user, or names the domain of the user's address.
    """
    knows = identities.c.provider_id == identity_providers.c.id
    has_domain = func.split_part(func.lower(users.c.email), "@", 2) == any_(
        identity_providers.c.email_domains
    )
    query = (
        select(identity_providers.c.org_id, identity_providers.c.email_domains)
        .join(users, users.c.id == user_id)
        .where(func.cardinality(identity_providers.c.email_domains) > 0)
        .where(has_domain | exists().where(knows, identities.c.user_id == user_id))
        .order_by(identity_providers.c.org_id)
    )
    return list(sql.execute(query))


def put(
    tx: Transaction, actor: Actor, *, values: Mapping[str, Any], secret: Mapping[str, str | None]
) -> Row[Any]:
    """Set the provider of the actor's org; `secret` has a `client_secret`, or keeps the stored one.

    With another issuer or client the identities of the former end, and the logins by them. The
    address alone leads its people to their accounts then, as `identities` says.

    Raises:
        Forbidden: the actor is no owner.
        InvalidRequest: a stored secret is not given again with another issuer or client, or this
            server lacks a setting.
        NoOwnerWithPassword: with another issuer or client; a mistake in them would lock all out.
    """
    _lock(tx, actor)
    settings = tx.connections.settings
    if redirect_uri(settings, org_urls.find(tx.sql, actor.org_id)) is None:
        raise InvalidRequest(body=["ARKLOOP_PUBLIC_URL is not set on this server"])
    query = select(identity_providers).where(identity_providers.c.org_id == actor.org_id)
    before = tx.sql.execute(query).one_or_none()
    is_same = before is not None and all(getattr(before, n) == values[n] for n in _WHOSE)
    if not is_same and before is not None:
        if before.client_secret_encrypted is not None and "client_secret" not in secret:
            why = "must be resent when `issuer` or `client_id` changes"
            raise InvalidRequest(client_secret=[why])
        _check_owner_with_password(tx.sql, actor.org_id)
        _remember_the_linked(tx, actor.org_id)
        tx.sql.execute(delete(identity_providers).where(identity_providers.c.id == before.id))
    columns = {**values, **_sealed(tx, actor, secret)}
    if is_same and before is not None:
        is_it = identity_providers.c.id == before.id
        columns["updated_at"] = func.now()
        tx.sql.execute(update(identity_providers).where(is_it).values(**columns))
    else:
        new = {"id": new_id(), "org_id": actor.org_id}
        tx.sql.execute(insert(identity_providers).values(**new, **columns))
    return get(tx.sql, actor.org_id)


def remove(tx: Transaction, actor: Actor) -> UUID:
    """Remove the provider of the actor's org, its identities and logins; returns its id.

    Raises:
        Forbidden: the actor is no owner.
        IdentityProviderNotFound
        NoOwnerWithPassword: nobody could log in as an owner any more.
    """
    _lock(tx, actor)
    _remember_the_linked(tx, actor.org_id)
    is_it = identity_providers.c.org_id == actor.org_id
    statement = delete(identity_providers).where(is_it).returning(identity_providers.c.id)
    removed = tx.sql.scalar(statement)
    if removed is None:
        raise IdentityProviderNotFound()
    _check_owner_with_password(tx.sql, actor.org_id)
    return UUID(str(removed))


def secret_of(settings: Settings, row: Row[Any]) -> str | None:
    """Return the client secret of a row of `get`. Raises: ClientSecretUnreadable."""
    if row.client_secret_encrypted is None:
        return None
    try:
        return org_keys.opened(
            keyring(settings.encryption_key),
            row.org_key,
            row.client_secret_encrypted,
            org_id=row.org_id,
            purpose=SECRET_PURPOSE,
        )
    except (NoEncryptionKey, CannotOpen) as error:
        raise ClientSecretUnreadable() from error  # which is what the log says


def _lock(tx: Transaction, actor: Actor) -> None:
    if members.lock(tx, actor) != members.OWNER:
        raise Forbidden("Only an owner can choose the identity provider.")


def _remember_the_linked(tx: Transaction, org_id: UUID) -> None:
    """Keep which members the provider knows: addresses of users never change, so a later provider
    with the same address means the same person.
    """
    of_org = select(identity_providers.c.id).where(identity_providers.c.org_id == org_id)
    known = select(identities.c.user_id).where(identities.c.provider_id.in_(of_org))
    is_known = (memberships.c.org_id == org_id) & memberships.c.user_id.in_(known)
    tx.sql.execute(update(memberships).where(is_known).values(was_linked=True))


def _check_owner_with_password(sql: Connection, org_id: UUID) -> None:
    owners = select(memberships.c.user_id).join(users, users.c.id == memberships.c.user_id)
    is_owner = (memberships.c.org_id == org_id) & (memberships.c.role == members.OWNER)
    has_password = users.c.password_hash != accounts.NO_PASSWORD
    if sql.scalar(owners.where(is_owner, has_password).limit(1)) is None:
        raise NoOwnerWithPassword()


def _with_key() -> Any:
    org_key = org_keys.wrapped_key(identity_providers.c.org_id).label("org_key")
    own_url = org_urls.own(identity_providers.c.org_id).label("own_url")
    return select(identity_providers, org_key, own_url)


def _sealed(tx: Transaction, actor: Actor, secret: Mapping[str, str | None]) -> dict[str, Any]:
    if "client_secret" not in secret:
        return {}
    text = secret["client_secret"]
    if text is None:
        return {"client_secret_encrypted": None}
    try:
        keys = keyring(tx.connections.settings.encryption_key)
        sealed = org_keys.seal(tx, keys, text, org_id=actor.org_id, purpose=SECRET_PURPOSE)
    except NoEncryptionKey as error:
        raise InvalidRequest(client_secret=[str(error)]) from None
    return {"client_secret_encrypted": sealed}
