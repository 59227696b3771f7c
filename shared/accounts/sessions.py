"""Logins: each is a family of rotating refresh tokens, in one of the user's orgs."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    ScalarSelect,
    func,
    insert,
    or_,
    select,
    true,
    update,
)

from arkloop.shared.accounts import secret_tokens, suspensions
from arkloop.shared.errors import OrgSuspended
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.accounts import memberships, refresh_tokens

REFRESH_LIFETIME = timedelta(days=30)
#: A list of logins has no more.
MAX_LISTED = 100

#: What all refresh tokens of a login have in common.
_OF_FAMILY = ("family_id", "user_id", "org_id", "identity_id", "session_ends_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A login: its access tokens carry `id`, its cookie the one `refresh_token` not yet used."""

    id: UUID
    user_id: UUID
    org_id: UUID
    refresh_token: str


def org_of(user_id: ColumnElement[Any], in_org: UUID | None = None) -> ScalarSelect[Any]:
    """Build SQL: the org that the user joined first, or with `in_org` that one; else null.

    Suspended orgs come last.
    """
    of_user = memberships.alias("of_user")
    query = select(of_user.c.org_id).where(of_user.c.user_id == user_id)
    if in_org is not None:
        query = query.where(of_user.c.org_id == in_org)
    order = (suspensions.is_suspended(of_user.c.org_id), of_user.c.created_at, of_user.c.org_id)
    return query.order_by(*order).limit(1).scalar_subquery()


def begin(
    tx: Transaction, *, user_id: UUID, org_id: UUID, by: tuple[UUID, timedelta] | None = None
) -> Session:
    """Begin a session for a new login in an org. Deletes the user's expired refresh tokens.

    `by` is the identity of a login by an identity provider, and after how long it ends at last.

    Raises:
        OrgSuspended
    """
    suspensions.check(tx.sql, org_id)
    tx.sql.execute(
        refresh_tokens.delete().where(
            refresh_tokens.c.user_id == user_id, refresh_tokens.c.expires_at < func.now()
        )
    )
    token: dict[str, Any] = {"family_id": new_id(), "user_id": user_id, "org_id": org_id}
    if by is not None:
        token |= {"identity_id": by[0], "session_ends_at": func.now() + by[1]}
    return _next_token(tx, **token)


def refresh(tx: Transaction, refresh_token: str) -> Session | None:
    """Exchange a refresh token for the next of its family; None if it is not in force.

    A token that was exchanged before has been copied:
    then the whole family ends (RFC 9700, 4.14.2).

    Raises:
        OrgSuspended: the token stays in force.
    """
    token_hash = secret_tokens.hash_of(refresh_token)
    org_id = func.coalesce(refresh_tokens.c.org_id, org_of(refresh_tokens.c.user_id))
    rotated = tx.sql.execute(
        update(refresh_tokens)
        .where(
            refresh_tokens.c.token_hash == token_hash,
            refresh_tokens.c.rotated_at.is_(None),
            refresh_tokens.c.revoked_at.is_(None),
            refresh_tokens.c.expires_at > func.now(),
            memberships.c.user_id == refresh_tokens.c.user_id,
            memberships.c.org_id == org_id,
        )
        .values(rotated_at=func.now())
        .returning(
            *(refresh_tokens.c[name] for name in _OF_FAMILY if name != "org_id"),
            memberships.c.org_id,
            suspensions.since(memberships.c.org_id),
        )
    ).one_or_none()
    if rotated is not None:
        family = rotated._asdict()
        if family.pop("suspended_at") is not None:
            raise OrgSuspended()
        return _next_token(tx, **family)
    reused = tx.sql.execute(
        select(refresh_tokens.c.family_id, refresh_tokens.c.user_id).where(
            refresh_tokens.c.token_hash == token_hash, refresh_tokens.c.rotated_at.is_not(None)
        )
    ).one_or_none()
    if reused is not None:
        end(tx, user_id=reused.user_id, session_id=reused.family_id)
    return None


def find(sql: Connection, refresh_token: str) -> Row[Any, Any, Any] | None:
    """Return id, user_id and org_id of the login that a refresh token belongs to, or None.

    The token may have been exchanged, and the login may have ended.
    """
    org_id = func.coalesce(refresh_tokens.c.org_id, org_of(refresh_tokens.c.user_id))
    return sql.execute(
        select(
            refresh_tokens.c.family_id.label("id"),
            refresh_tokens.c.user_id,
            org_id.label("org_id"),
        ).where(
            refresh_tokens.c.token_hash == secret_tokens.hash_of(refresh_token),
            org_id.is_not(None),
        )
    ).one_or_none()


def list_(sql: Connection, user_id: UUID, *, in_org: UUID | None = None) -> list[Row[Any]]:
    """List the user's logins that are in force, the newest first, at most `MAX_LISTED`.

    With `in_org` those in this org alone. Each with id, created_at (that of its oldest refresh
    token that is kept), refreshed_at and expires_at.
    """
    expires_at = func.max(refresh_tokens.c.expires_at)
    query = (
        select(
            refresh_tokens.c.family_id.label("id"),
            func.min(refresh_tokens.c.created_at).label("created_at"),
            func.max(refresh_tokens.c.created_at).label("refreshed_at"),
            expires_at.label("expires_at"),
        )
        .where(
            refresh_tokens.c.user_id == user_id,
            refresh_tokens.c.revoked_at.is_(None),
            true() if in_org is None else refresh_tokens.c.org_id == in_org,
        )
        .group_by(refresh_tokens.c.family_id)
        .having(expires_at > func.now())
        .order_by(func.max(refresh_tokens.c.created_at).desc(), refresh_tokens.c.family_id)
        .limit(MAX_LISTED)
    )
    return list(sql.execute(query))


def end(tx: Transaction, *, user_id: UUID, session_id: UUID, in_org: UUID | None = None) -> bool:
    """Revoke a login of the user: its refresh token and its access tokens.

    Returns whether the user had such a login in force, with `in_org` one in this org.
    """
    return revoke(
        tx,
        refresh_tokens.c.user_id == user_id,
        refresh_tokens.c.family_id == session_id,
        true() if in_org is None else refresh_tokens.c.org_id == in_org,
    )


def end_in_org(tx: Transaction, *, user_id: UUID, org_id: UUID) -> None:
    """Revoke all logins of the user in an org."""
    in_org = or_(refresh_tokens.c.org_id == org_id, refresh_tokens.c.org_id.is_(None))
    revoke(tx, refresh_tokens.c.user_id == user_id, in_org)


def revoke(tx: Transaction, *which: Any) -> bool:
    """Return whether there was a token to revoke."""
    in_force = (*which, refresh_tokens.c.revoked_at.is_(None))
    # The oldest first: two requests that revoke the same tokens would else wait for each other.
    locked = select(refresh_tokens.c.id).where(*in_force).order_by(refresh_tokens.c.id)
    tx.sql.execute(locked.with_for_update())
    revoked = tx.sql.execute(update(refresh_tokens).where(*in_force).values(revoked_at=func.now()))
    return revoked.rowcount > 0


def _next_token(tx: Transaction, **family: Any) -> Session:
    """Insert a token with the values of its family, those of `_OF_FAMILY`."""
    token = secret_tokens.make()
    # `least` ignores null.
    expires_at = func.least(func.now() + REFRESH_LIFETIME, family.get("session_ends_at"))
    values = {"token_hash": secret_tokens.hash_of(token), "expires_at": expires_at}
    tx.sql.execute(insert(refresh_tokens).values(id=new_id(), **family, **values))
    ids = {name: family[name] for name in ("user_id", "org_id")}
    return Session(id=family["family_id"], **ids, refresh_token=token)
