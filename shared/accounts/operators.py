"""Operators: users who look after the whole installation over the API.

No request makes an operator, only a command that uses the database directly: who holds the database
decides. An operator acts by a login with a password, or by an API key with the scope `operator`. A
login by the identity provider of an org is none: the admins of the org could forge it.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Row, delete, exists, select
from sqlalchemy.dialects.postgresql import insert as upsert

from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.accounts import operators, password_resets, users

_SHOWN: tuple[Any, ...] = (users.c.id, users.c.login, users.c.email, operators.c.created_at)


def add(tx: Transaction, user_id: UUID) -> bool:
    """Make a user an operator; returns False for one who is.

    An open reset of their password ends: an admin of their org may have the token.
    """
    # While an admin makes one, the row of the user is locked.
    tx.sql.execute(select(users.c.id).where(users.c.id == user_id).with_for_update())
    tx.sql.execute(delete(password_resets).where(password_resets.c.user_id == user_id))
    added = upsert(operators).values(user_id=user_id).on_conflict_do_nothing()
    return tx.sql.scalar(added.returning(operators.c.user_id)) is not None


def remove(tx: Transaction, user_id: UUID) -> bool:
    """Take the rights of an operator from a user; returns False for one who has none."""
    return bool(tx.sql.execute(delete(operators).where(operators.c.user_id == user_id)).rowcount)


def list_(sql: Connection) -> Sequence[Row[Any]]:
    """List the operators with their logins, the oldest first."""
    query = select(*_SHOWN).join(operators, operators.c.user_id == users.c.id)
    return sql.execute(query.order_by(operators.c.created_at)).all()


def is_operator(user_id: ColumnElement[UUID]) -> ColumnElement[bool]:
    """Build SQL: the user is an operator."""
    return exists().where(operators.c.user_id == user_id)
