"""The members of an org and their roles.

Changes of one org happen one after the other, under a lock of its row: an org always has an owner.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, delete, func, select, update

from arkloop.shared.accounts import accounts, api_keys, credentials, sessions
from arkloop.shared.actors import PERMISSIONS_OF_ROLE, Actor
from arkloop.shared.audit import audit_log
from arkloop.shared.catalog import mcp_access, mcp_owners
from arkloop.shared.errors import Forbidden, LastOwner, MemberNotFound
from arkloop.shared.runs import commands, revocations
from arkloop.shared.storage import org_locks
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.pages import Place, after, newest
from arkloop.shared.storage.tables.accounts import api_keys as keys
from arkloop.shared.storage.tables.accounts import (
    invitations,
    memberships,
    password_resets,
    users,
)

ROLES = tuple(PERMISSIONS_OF_ROLE)
OWNER = "owner"


def list_(sql: Connection, org_id: UUID, *, limit: int, before: Place | None) -> list[Row[Any]]:
    """List members: id, login, email, role and created_at, when they joined; the newest first."""
    listed = _members().where(memberships.c.org_id == org_id).subquery("listed")
    page = newest(select(listed), listed, limit=limit, is_deep=before is not None)
    return list(sql.execute(page, after(before)))


def now_and_lately(sql: Connection, org_id: UUID, within: timedelta) -> set[UUID]:
    """Return the members of an org, and those who left within this time, by the audit log."""
    now = select(memberships.c.user_id).where(memberships.c.org_id == org_id)
    left = audit_log.targets(sql, org_id, ["member.removed", "user.erased"], within=within)
    return {*sql.scalars(now), *map(UUID, left)}


def issuers(sql: Connection, org_id: UUID, within: timedelta) -> set[UUID]:
    """Return the API keys of an org and the users, also those who left within this time, that can
    have issued client tokens of it.
    """
    of_org = sql.execute(select(keys.c.id, keys.c.user_id).where(keys.c.org_id == org_id))
    return {id_ for key in of_org for id_ in key} | now_and_lately(sql, org_id, within)


def change_role(tx: Transaction, actor: Actor, user_id: UUID, role: str) -> Row[Any]:
    """Give a member of the actor's org another role; returns the member as `list_` does.

    The open invitations and password resets that the member has created are revoked, and the reset
    of their own password ends: an admin may have its token, who could not make one for an owner.

    Raises:
        MemberNotFound
        Forbidden: only owners change owners and make others owners.
        LastOwner: the org would have no owner.
    """
    own_role = lock(tx, actor)
    before = _role(tx, actor.org_id, user_id)
    if before is None:
        raise MemberNotFound()
    check_may_give(own_role, before)
    check_may_give(own_role, role)
    if before != role:
        if before == OWNER:
            _check_other_owner(tx, actor.org_id, user_id)
        tx.sql.execute(update(memberships).where(*_is(actor.org_id, user_id)).values(role=role))
        _revoke_created(tx, actor.org_id, user_id)
        accounts.end_password_reset(tx, user_id)
    return tx.sql.execute(_members().where(*_is(actor.org_id, user_id))).one()


def remove(tx: Transaction, actor: Actor, user_id: UUID) -> Sequence[UUID]:
    """Remove a member from the actor's org; everybody may remove themselves.

    Their logins in this org, their API keys of it, their open invitations to it, the resets that
    they have made for its members, the reset of their own password and the access that they have
    granted MCP servers of the org end. Runs of the keys are cancelled, and runs in their private
    threads, which nobody could see or stop any more; their threads and other runs stay. Returns the
    ids of the keys.

    Raises:
        MemberNotFound
        Forbidden: only owners remove owners, and members nobody else.
        LastOwner: the org would have no owner.
    """
    org_id = actor.org_id
    own_role = lock(tx, actor)
    role = _role(tx, org_id, user_id)
    if role is None:
        raise MemberNotFound()
    if user_id != actor.user_id:
        check_may_give(own_role, role)
    if role == OWNER:
        _check_other_owner(tx, org_id, user_id)
    tx.sql.execute(delete(memberships).where(*_is(org_id, user_id)))
    owner = mcp_access.owner_of(None, user_id)
    # Before other runs are locked: runs that wait for these pages are waited for, in their order.
    commands.decline_visits(tx, mcp_owners.forget(tx, owner, org_id=org_id))
    revocations.cancel_private_runs(tx, org_id=org_id, user_id=user_id, by_user_id=actor.user_id)
    sessions.end_in_org(tx, user_id=user_id, org_id=org_id)
    revoked = api_keys.revoke_all(tx, org_id=org_id, user_id=user_id, by_user_id=actor.user_id)
    _revoke_created(tx, org_id, user_id)
    accounts.end_password_reset(tx, user_id)
    return revoked


def lock(tx: Transaction, actor: Actor) -> str:
    """Let nobody else change the members of the actor's org until the transaction ends.

    Returns the role that the actor has now.

    Raises:
        Forbidden: none any more.
        Unauthorized: their login has ended.
    """
    org_locks.lock(tx, actor.org_id)
    role = _role(tx, actor.org_id, actor.user_id)
    if role is None:
        raise Forbidden("You are not a member of this organization any more.")
    credentials.permissions_now(tx.sql, actor)
    return role


def check_may_give(own_role: str, role: str) -> None:
    """Check that somebody with `own_role` may give this role, or take it. Raises: Forbidden."""
    if "admin" not in PERMISSIONS_OF_ROLE[own_role]:
        raise Forbidden("Only owners and admins can do this with other members.")
    if role == OWNER and own_role != OWNER:
        raise Forbidden("Only an owner can do this with owners.")


def lacks_owner(sql: Connection, org_id: UUID) -> bool:
    """Return whether an org has members and no owner: its only one was erased in a former cell."""
    has_owner = select(func.bool_or(memberships.c.role == OWNER))
    return sql.scalar(has_owner.where(memberships.c.org_id == org_id)) is False


def _check_other_owner(tx: Transaction, org_id: UUID, user_id: UUID) -> None:
    others = select(func.count()).where(
        memberships.c.org_id == org_id,
        memberships.c.role == OWNER,
        memberships.c.user_id != user_id,
    )
    if not tx.sql.scalar(others):
        raise LastOwner()


def _revoke_created(tx: Transaction, org_id: UUID, user_id: UUID) -> None:
    """Revoke the invitations and resets that somebody made with a role that they have no longer."""
    tx.sql.execute(
        delete(invitations).where(
            invitations.c.org_id == org_id, invitations.c.created_by_user_id == user_id
        )
    )
    of_org = select(memberships.c.user_id).where(memberships.c.org_id == org_id)
    tx.sql.execute(
        delete(password_resets).where(
            password_resets.c.user_id.in_(of_org), password_resets.c.created_by_user_id == user_id
        )
    )


def _role(tx: Transaction, org_id: UUID, user_id: UUID) -> str | None:
    return tx.sql.scalar(select(memberships.c.role).where(*_is(org_id, user_id)))


def _is(org_id: UUID, user_id: UUID) -> tuple[Any, ...]:
    return memberships.c.org_id == org_id, memberships.c.user_id == user_id


def _members() -> Any:
    return select(
        users.c.id, users.c.login, users.c.email, memberships.c.role, memberships.c.created_at
    ).join(users, users.c.id == memberships.c.user_id)
