"""The credentials behind an actor, as they are now."""

from sqlalchemy import Connection, select

from arkloop.shared.accounts import accounts, api_keys
from arkloop.shared.actors import OPERATE, PERMISSIONS_OF_ROLE, Actor
from arkloop.shared.errors import OrgSuspended, Unauthorized
from arkloop.shared.storage.tables.accounts import api_keys as keys
from arkloop.shared.storage.tables.accounts import refresh_tokens


def permissions_now(sql: Connection, actor: Actor) -> frozenset[str]:
    """Return what the key or login behind the actor allows now.

    What a process believes of it may be some seconds old. That does for a request, and not for what
    outlives a revocation: another key, an invitation, a role. A revocation that comes later waits
    for the end of the transaction.

    Raises:
        Unauthorized: it is not in force any more, or its org is suspended.
    """
    _hold(sql, actor)
    if actor.api_key_id is not None:
        row = api_keys.find_by_id(sql, actor.api_key_id)
        permissions = row and api_keys.permissions_of(row)
    else:
        row = accounts.membership(
            sql, user_id=actor.user_id, org_id=actor.org_id, session_id=actor.session_id
        )
        of_operator = {OPERATE} if row is not None and row.is_operator else set()
        permissions = row and PERMISSIONS_OF_ROLE[row.role] | of_operator
    if row is None or permissions is None:
        raise Unauthorized()
    if row.suspended_at is not None:
        raise OrgSuspended()
    return permissions


def _hold(sql: Connection, actor: Actor) -> None:
    if actor.api_key_id is not None:
        held = select(keys.c.id).where(keys.c.id == actor.api_key_id)
    else:
        # One is enough: what ends a login locks all of its tokens.
        held = (
            select(refresh_tokens.c.id)
            .where(
                refresh_tokens.c.family_id == actor.session_id,
                refresh_tokens.c.revoked_at.is_(None),
            )
            .order_by(refresh_tokens.c.id.desc())
            .limit(1)
        )
    sql.execute(held.with_for_update(read=True))
