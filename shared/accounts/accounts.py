"""Users and their orgs: a user may be in several.

Hashing a password takes long; it is done in `passwords.py` before a transaction begins.
"""

import re
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Connection,
    Row,
    and_,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError

from arkloop.shared.accounts import operators, sessions, suspensions
from arkloop.shared.errors import LoginTaken, Unauthorized
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.accounts import (
    memberships,
    orgs,
    password_resets,
    refresh_tokens,
    users,
)

#: The hash of a user's password who has none: no password fits it.
NO_PASSWORD = "none"  # noqa: S105 - no password

MAX_NAME_LENGTH = 200
MIN_PASSWORD_LENGTH = 8
MAX_PASSWORD_LENGTH = 1024

_EMAIL = re.compile(r"[^@\s\x00]+@[^@\s\x00]+")
#: Shorter than the 32 digits of a UUID, so that no slug is an id.
_SLUG = re.compile(r"(?=.{1,30}\Z)[a-z0-9]+(-[a-z0-9]+)*")


def problems_of(*, login: str, email: str) -> dict[str, str]:
    """Return the problems of a new user's names: field → why."""
    problems = {}
    # Without "@", or one user's login could be another's email.
    if (
        not 1 <= len(login) <= MAX_NAME_LENGTH
        or not login.isprintable()
        or login != login.strip()
        or "@" in login
    ):
        problems["login"] = (
            "must be 1 to 200 printable characters, without @ and without leading or"
            " trailing spaces"
        )
    if len(email) > MAX_NAME_LENGTH or not _EMAIL.fullmatch(email) or not email.isprintable():
        problems["email"] = "must be an email address of at most 200 printable characters"
    return problems


def problem_of_password(password: str) -> str | None:
    """Return why the text cannot be a new password, None if it can."""
    if MIN_PASSWORD_LENGTH <= len(password) <= MAX_PASSWORD_LENGTH:
        return None
    return f"must have {MIN_PASSWORD_LENGTH} to {MAX_PASSWORD_LENGTH} characters"


def problem_of_slug(slug: str) -> str | None:
    """Return why the text cannot be an org's slug, None if it can."""
    if _SLUG.fullmatch(slug):
        return None
    return "must be 1 to 30 lower-case letters and digits, with single hyphens between them"


def create_org(tx: Transaction, name: str) -> UUID:
    """Make an org without a slug, which is found by its id alone."""
    org_id = new_id()
    tx.sql.execute(insert(orgs).values(id=org_id, name=name))
    return org_id


def ensure_org(tx: Transaction, slug: str) -> UUID:
    """Return the org of this slug, made if it is missing; the slug must be a valid one."""
    made = upsert(orgs).values(id=new_id(), name=slug, slug=slug)
    # A concurrent insert of the same slug is waited for, and its row is visible then.
    tx.sql.execute(made.on_conflict_do_nothing(index_elements=["slug"]))
    return UUID(str(tx.sql.scalars(select(orgs.c.id).where(orgs.c.slug == slug)).one()))


def find_org(sql: Connection, id_or_slug: str) -> UUID | None:
    """Return the id of the org with this id or slug; its name does not count."""
    try:
        matching = orgs.c.id == UUID(id_or_slug)
    except ValueError:
        matching = orgs.c.slug == id_or_slug
    found = sql.scalar(select(orgs.c.id).where(matching))
    return None if found is None else UUID(str(found))


def orgs_named(sql: Connection, name: str) -> list[UUID]:
    """Return the ids of all orgs with this name, oldest first."""
    query = select(orgs.c.id).where(orgs.c.name == name).order_by(orgs.c.created_at, orgs.c.id)
    return [UUID(str(org_id)) for org_id in sql.scalars(query)]


def create_user(
    tx: Transaction, *, org_id: UUID, role: str, login: str, email: str, password_hash: str
) -> UUID:
    """Make a user with a role (`owner`, `admin`, `member`) in an org.

    Raises:
        LoginTaken: somebody has the login or the email, in whatever case.
    """
    user_id = create_user_without_org(tx, login=login, email=email, password_hash=password_hash)
    tx.sql.execute(insert(memberships).values(user_id=user_id, org_id=org_id, role=role))
    return user_id


def create_user_without_org(tx: Transaction, *, login: str, email: str, password_hash: str) -> UUID:
    """Make a user who is in no org yet. Raises: LoginTaken."""
    user_id = new_id()
    try:
        tx.sql.execute(
            insert(users).values(id=user_id, login=login, email=email, password_hash=password_hash)
        )
    except IntegrityError as error:
        raise LoginTaken() from error
    return user_id


def find(sql: Connection, login: str, *, in_org: UUID | None = None) -> Row[Any] | None:
    """Find the user with this login or email, in whatever case: id, password_hash, org_id and
    first_org_id.

    `first_org_id` is the org that the user joined first, a suspended one only if all are, null
    without any. `org_id` is the same, or with `in_org` that one; null if the user is not in it.
    """
    # A login never contains "@", an email always does: at most one row matches.
    query = select(
        *(users.c.id, users.c.password_hash),
        sessions.org_of(users.c.id, in_org).label("org_id"),
        sessions.org_of(users.c.id).label("first_org_id"),
    ).where(
        or_(
            func.lower(users.c.login) == func.lower(login),
            func.lower(users.c.email) == func.lower(login),
        )
    )
    # The row has these columns; the types would have a row of any.
    return sql.execute(query).one_or_none()  # type: ignore[return-value]  # these columns


def compared(sql: Connection, login: str) -> str:
    """Return a login or email as `find` compares it: what Postgres lowers is not what Python does.

    Postgres makes an `i` of `İ`, for example, and so finds a user by more spellings.
    """
    return str(sql.scalar(select(func.lower(login))))


def profile(sql: Connection, user_id: UUID, org_id: UUID) -> Row[Any]:
    """Return a user's id, login, email, created_at and password_hash, and the org_name."""
    return sql.execute(
        select(users, orgs.c.name.label("org_name"))
        .join(orgs, orgs.c.id == org_id)
        .where(users.c.id == user_id)
    ).one()


def orgs_of(sql: Connection, user_id: UUID) -> list[Row[Any]]:
    """List the orgs of a user: id, name and the user's role, in the order in which they joined."""
    return list(
        sql.execute(
            select(orgs.c.id, orgs.c.name, memberships.c.role)
            .join(memberships, memberships.c.org_id == orgs.c.id)
            .where(memberships.c.user_id == user_id)
            .order_by(memberships.c.created_at, orgs.c.id)
        )
    )


def list_(sql: Connection) -> list[Row[Any]]:
    """List all users by age: id, login, email, org_id, org_name, org_slug, role, created_at.

    Users in several orgs have a row for each, those in none have one without an org.
    """
    return list(
        sql.execute(
            select(
                users.c.id,
                users.c.login,
                users.c.email,
                orgs.c.id.label("org_id"),
                orgs.c.name.label("org_name"),
                orgs.c.slug.label("org_slug"),
                memberships.c.role,
                users.c.created_at,
            )
            .outerjoin(memberships, memberships.c.user_id == users.c.id)
            .outerjoin(orgs, orgs.c.id == memberships.c.org_id)
            .order_by(users.c.created_at, users.c.id, memberships.c.created_at, orgs.c.id)
        )
    )


def membership(
    sql: Connection, *, user_id: UUID, org_id: UUID, session_id: UUID | None
) -> Row[Any] | None:
    """Return the user's `role` in the org, whether the session is that of an operator, and since
    when the org is suspended.

    None if they have no role there, or the session has ended.
    """
    session = and_(
        refresh_tokens.c.family_id == session_id,
        refresh_tokens.c.user_id == user_id,
        refresh_tokens.c.revoked_at.is_(None),
        # An access token may be made just before, and lives on for 15 minutes.
        func.coalesce(refresh_tokens.c.session_ends_at > func.now(), true()),
    )
    by_password = exists().where(session, refresh_tokens.c.identity_id.is_(None))
    query = select(
        memberships.c.role,
        (operators.is_operator(memberships.c.user_id) & by_password).label("is_operator"),
        suspensions.since(memberships.c.org_id),
    ).where(memberships.c.user_id == user_id, memberships.c.org_id == org_id)
    if session_id is not None:
        query = query.where(exists().where(session))
    return sql.execute(query).one_or_none()


def change_password(
    tx: Transaction, *, user_id: UUID, password_hash: str, keep_session: UUID | None = None
) -> None:
    """Set the password, and end an open reset and the user's logins but for the one to keep."""
    tx.sql.execute(update(users).where(users.c.id == user_id).values(password_hash=password_hash))
    end_password_reset(tx, user_id)
    others = [] if keep_session is None else [refresh_tokens.c.family_id != keep_session]
    sessions.revoke(tx, refresh_tokens.c.user_id == user_id, *others)


def hold_password(sql: Connection, user_id: UUID, verified: str | None) -> None:
    """Keep a password that was verified from being changed until the transaction ends.

    `verified` is the hash that it was compared with.

    Raises:
        Unauthorized: it was changed meanwhile.
    """
    held = select(users.c.password_hash).where(users.c.id == user_id).with_for_update()
    if sql.scalar(held) != verified:
        raise Unauthorized("Wrong login or password.")


def end_password_reset(tx: Transaction, user_id: UUID) -> None:
    """End the open reset of the user's password, if there is one."""
    tx.sql.execute(delete(password_resets).where(password_resets.c.user_id == user_id))
