"""Resets of passwords: somebody who has the token chooses a new one, once.

An admin who has made a token can use it and log in as the user. So a reset ends when the user joins
or leaves an org, and when the admin leaves it or gets another role. Admins make none for members
who are in another org, too, or who operate the service.
"""

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, delete, func, literal, select
from sqlalchemy.dialects.postgresql import insert as upsert

from arkloop.shared.accounts import accounts, members, operators, secret_tokens
from arkloop.shared.actors import Actor
from arkloop.shared.errors import Forbidden, MemberNotFound, PasswordResetInvalid
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.accounts import memberships, password_resets, users

PREFIX = "alr_"
LIFETIME = timedelta(hours=24)


def create(
    tx: Transaction, user_id: UUID, *, by_user_id: UUID | None = None
) -> tuple[str, datetime]:
    """Make the token for a user's reset, in place of an earlier one; returns it and its end.

    It ends with the role of `by_user_id`; without one, a command of the operator makes it.
    """
    token = secret_tokens.make(PREFIX)
    values = {
        "token_hash": secret_tokens.hash_of(token),
        "created_by_user_id": by_user_id,
        "created_at": func.now(),
        "expires_at": func.now() + LIFETIME,
    }
    expires_at = tx.sql.execute(
        upsert(password_resets)
        .values(user_id=user_id, **values)
        .on_conflict_do_update(index_elements=["user_id"], set_=values)
        .returning(password_resets.c.expires_at)
    ).scalar_one()
    return token, expires_at


def create_for_member(tx: Transaction, actor: Actor, user_id: UUID) -> tuple[str, datetime]:
    """Make the token for a member of the actor's org, as `create` does.

    Raises:
        MemberNotFound
        Forbidden: the actor is no admin, or the member an owner and the actor none, or the member
            is in other orgs, too, or an operator, or the actor.
    """
    if user_id == actor.user_id:  # a stolen access token must not be enough
        raise Forbidden("Use POST /v1/auth/password for your own password.")
    own_role = members.lock(tx, actor)
    # They can join no other org until the transaction ends.
    tx.sql.execute(select(users.c.id).where(users.c.id == user_id).with_for_update())
    of_user = select(memberships.c.org_id, memberships.c.role)
    found = tx.sql.execute(of_user.where(memberships.c.user_id == user_id)).all()
    roles = {row.org_id: row.role for row in found}
    if actor.org_id not in roles:
        raise MemberNotFound()
    members.check_may_give(own_role, roles[actor.org_id])
    if tx.sql.scalar(select(operators.is_operator(literal(user_id)))):
        raise Forbidden("This user operates the service: only a command resets their password.")
    if len(roles) > 1:
        raise Forbidden("This user is in another organization, too: only an operator may do this.")
    return create(tx, user_id, by_user_id=actor.user_id)


def check(sql: Connection, token: str) -> None:
    """Check that the token could be used now. Raises: PasswordResetInvalid."""
    if sql.scalar(select(password_resets.c.user_id).where(_is(token))) is None:
        raise PasswordResetInvalid()


def use(tx: Transaction, token: str, password_hash: str) -> tuple[UUID, str, str]:
    """Set the password and end all logins of the user; returns the user's id, login and email.

    Raises:
        PasswordResetInvalid: no open reset has this token.
    """
    used = delete(password_resets).where(_is(token)).returning(password_resets.c.user_id)
    user_id = tx.sql.scalar(used)
    if user_id is None:
        raise PasswordResetInvalid()
    accounts.change_password(tx, user_id=user_id, password_hash=password_hash)
    user = select(users.c.id, users.c.login, users.c.email).where(users.c.id == user_id)
    user_id, login, email = tx.sql.execute(user).one()
    return user_id, login, email


def _is(token: str) -> ColumnElement[bool]:
    is_it = password_resets.c.token_hash == secret_tokens.hash_of(token)
    return is_it & (password_resets.c.expires_at > func.now())
