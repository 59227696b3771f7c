"""Invitations to an org: each is accepted once, by somebody who has its token.

An invitation that is accepted or revoked is deleted: of many who come at once with a token, the
deletion has one row for one of them.
"""

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, select
from sqlalchemy.dialects.postgresql import insert as upsert

from arkloop.shared.accounts import accounts, members, secret_tokens
from arkloop.shared.actors import Actor
from arkloop.shared.errors import AlreadyMember, InvitationInvalid, InvitationNotFound
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.pages import Place, after, newest
from arkloop.shared.storage.tables.accounts import invitations, memberships

PREFIX = "ali_"


def create(
    tx: Transaction, actor: Actor, *, name: str, role: str, lifetime: timedelta
) -> tuple[Row[Any], str]:
    """Create an invitation to the actor's org; returns the row and the token, shown only this once.

    Deletes the org's expired invitations.

    Raises:
        Forbidden: the actor may not give this role.
    """
    members.check_may_give(members.lock(tx, actor), role)
    tx.sql.execute(
        delete(invitations).where(
            invitations.c.org_id == actor.org_id, invitations.c.expires_at <= func.now()
        )
    )
    token = secret_tokens.make(PREFIX)
    row = tx.sql.execute(
        insert(invitations)
        .values(
            id=new_id(),
            org_id=actor.org_id,
            name=name,
            role=role,
            token_hash=secret_tokens.hash_of(token),
            created_by_user_id=actor.user_id,
            expires_at=func.now() + lifetime,
        )
        .returning(*invitations.c)
    ).one()
    return row, token


def list_(sql: Connection, org_id: UUID, *, limit: int, before: Place | None) -> list[Row[Any]]:
    """List the org's open invitations, newest first."""
    query = select(invitations).where(invitations.c.org_id == org_id, _IS_OPEN)
    page = newest(query, invitations, limit=limit, is_deep=before is not None)
    return list(sql.execute(page, after(before)))


def revoke(tx: Transaction, org_id: UUID, invitation_id: UUID) -> None:
    """Revoke an open invitation of the org. Raises: InvitationNotFound."""
    revoked = tx.sql.execute(
        delete(invitations).where(
            invitations.c.id == invitation_id, invitations.c.org_id == org_id, _IS_OPEN
        )
    )
    if not revoked.rowcount:
        raise InvitationNotFound()


def check(sql: Connection, token: str) -> None:
    """Check that the token could be accepted now. Raises: InvitationInvalid."""
    if sql.scalar(select(invitations.c.id).where(_is(token))) is None:
        raise InvitationInvalid()


def accept(tx: Transaction, token: str, user_id: UUID) -> UUID:
    """Make the user a member of the org that the token invites to; returns the org's id.

    Raises:
        InvitationInvalid: no open invitation has this token.
        AlreadyMember: the user is in the org; the invitation stays open.
    """
    accepted = tx.sql.execute(
        delete(invitations).where(_is(token)).returning(invitations.c.org_id, invitations.c.role)
    ).one_or_none()
    if accepted is None:
        raise InvitationInvalid()
    added = tx.sql.scalar(
        upsert(memberships)
        .values(user_id=user_id, org_id=accepted.org_id, role=accepted.role)
        .on_conflict_do_nothing()
        .returning(memberships.c.user_id)
    )
    if added is None:
        raise AlreadyMember()
    accounts.end_password_reset(tx, user_id)
    return UUID(str(accepted.org_id))


_IS_OPEN: ColumnElement[bool] = invitations.c.expires_at > func.now()


def _is(token: str) -> ColumnElement[bool]:
    return (invitations.c.token_hash == secret_tokens.hash_of(token)) & _IS_OPEN
