"""API keys: `al_`, 30 random characters, and a checksum that tells a typo without a database.

Scanners for leaked secrets find them with `al_[0-9A-Za-z]{36}`. Only the
SHA-256 of a key is stored: with 178 random bits nothing slower is needed.
"""

import hashlib
import re
import secrets
import string
import zlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, Text, cast, func, literal, or_, select, update
from sqlalchemy.sql import ColumnElement

from arkloop.shared.accounts import operators, suspensions
from arkloop.shared.actors import OPERATE, PERMISSIONS_OF_ROLE, Actor
from arkloop.shared.billing import budget_limits
from arkloop.shared.billing.spending import API_KEY_SCOPE, api_key_scope
from arkloop.shared.errors import ApiKeyNotFound, Forbidden
from arkloop.shared.ids import new_id
from arkloop.shared.runs import revocations
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.pages import Place, after, newest
from arkloop.shared.storage.tables.accounts import api_keys, memberships
from arkloop.shared.storage.tables.billing import budgets

PREFIX = "al_"
PATTERN = re.compile(r"al_([0-9A-Za-z]{30})([0-9A-Za-z]{6})")

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SHOWN_CHARACTERS = 6  # enough to tell keys apart, few enough to leave 142 secret bits


_IN_FORCE = (
    api_keys.c.revoked_at.is_(None),
    or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > func.now()),
)
_LIMITS = ("max_cost_usd", "max_cost_usd_per_month")
_WITH_LIMITS = select(api_keys, budgets.c.max_cost_usd, budgets.c.max_cost_usd_per_month).join(
    budgets,
    (budgets.c.org_id == api_keys.c.org_id)
    & (budgets.c.scope == literal(API_KEY_SCOPE).concat(cast(api_keys.c.id, Text))),
    isouter=True,
)


def make() -> str:
    """Make a new key; its random part has 178 bits."""
    random = "".join(secrets.choice(_ALPHABET) for _ in range(30))
    return PREFIX + random + _checksum(random)


def is_well_formed(key: str) -> bool:
    """Return whether form and checksum are right, the only checks possible without the database."""
    match = PATTERN.fullmatch(key)
    return match is not None and _checksum(match[1]) == match[2]


def hash_of(key: str) -> str:
    """Hash a key: SHA-256, hex."""
    return hashlib.sha256(key.encode()).hexdigest()


def create(
    tx: Transaction,
    actor: Actor,
    *,
    name: str,
    scopes: Iterable[str] | None = None,
    expires_at: datetime | None = None,
    max_cost_usd: Decimal | None = None,
    max_cost_usd_per_month: Decimal | None = None,
) -> tuple[Row[Any], str]:
    """Make a key of the actor; returns its row and the key, which nobody can read again.

    Without scopes it may do in its org what its creator may do now: what only operators may has to
    be named.

    Raises:
        Forbidden: scopes beyond the actor's own permissions; limits on costs without `admin`.
    """
    wanted = actor.permissions - {OPERATE} if scopes is None else frozenset(scopes)
    if not wanted <= actor.permissions:
        lacking = ", ".join(f"`{scope}`" for scope in sorted(wanted - actor.permissions))
        raise Forbidden(f"An API key cannot have scopes its creator lacks: {lacking}.")
    key = make()
    row = tx.sql.execute(
        api_keys.insert()
        .values(
            id=new_id(),
            org_id=actor.org_id,
            user_id=actor.user_id,
            name=name,
            key_prefix=key[: len(PREFIX) + _SHOWN_CHARACTERS],
            key_hash=hash_of(key),
            scopes=sorted(wanted),
            expires_at=expires_at,
        )
        .returning(*api_keys.c)
    ).one()
    if max_cost_usd is not None or max_cost_usd_per_month is not None:
        limits = {"max_cost_usd": max_cost_usd, "max_cost_usd_per_month": max_cost_usd_per_month}
        row = change(tx, actor, row.id, **limits)
    else:
        row = get(tx.sql, actor, row.id)
    return row, key


def change(tx: Transaction, actor: Actor, key_id: UUID, **limits: Decimal | None) -> Row[Any]:
    """Set what the runs of a key may cost; a limit that is not given stays. Returns its row.

    Raises:
        ApiKeyNotFound: the actor sees no such key.
        Forbidden: without `admin`. Else a member would lift what an admin has set.
    """
    tx.sql.execute(
        select(api_keys.c.id).where(api_keys.c.id == key_id, _seen_by(actor)).with_for_update()
    )
    row = get(tx.sql, actor, key_id)
    if "admin" not in actor.permissions:
        raise Forbidden("Only an admin can set the budget of an API key.")
    budget_limits.set_(
        tx,
        row.org_id,
        api_key_scope(row.id),
        **{name: limits.get(name, row._mapping[name]) for name in _LIMITS},
    )
    return get(tx.sql, actor, key_id)


def get(sql: Connection, actor: Actor, key_id: UUID) -> Row[Any]:
    """Return the row of a key with the limits of its budget.

    Raises:
        ApiKeyNotFound: the actor sees no such key.
    """
    row = sql.execute(_WITH_LIMITS.where(api_keys.c.id == key_id, _seen_by(actor))).one_or_none()
    if row is None:
        raise ApiKeyNotFound()
    return row


def list_(sql: Connection, actor: Actor, *, limit: int, before: Place | None) -> list[Row[Any]]:
    """List keys, newest first; members see their own, owners and admins all of the org."""
    query = _WITH_LIMITS.where(_seen_by(actor))
    page = newest(query, api_keys, limit=limit, is_deep=before is not None)
    return list(sql.execute(page, after(before)))


def revoke(tx: Transaction, actor: Actor, key_id: UUID) -> None:
    """End a key and cancel its active runs; one that has ended already stays as it is.

    Raises:
        ApiKeyNotFound: the actor sees no such key.
    """
    found = tx.sql.scalar(
        update(api_keys)
        .where(api_keys.c.id == key_id, _seen_by(actor))
        .values(revoked_at=func.coalesce(api_keys.c.revoked_at, func.now()))
        .returning(api_keys.c.id)
    )
    if found is None:
        raise ApiKeyNotFound()
    revocations.cancel_runs(tx, [key_id], by_user_id=actor.user_id)


def revoke_all(
    tx: Transaction, *, org_id: UUID, user_id: UUID, by_user_id: UUID | None
) -> Sequence[UUID]:
    """End all keys of a user in an org, as `revoke` does, by default in the user's own name.

    Returns the ids of those that end by this.
    """
    revoked = tx.sql.scalars(
        update(api_keys)
        .where(
            api_keys.c.org_id == org_id,
            api_keys.c.user_id == user_id,
            api_keys.c.revoked_at.is_(None),
        )
        .values(revoked_at=func.now())
        .returning(api_keys.c.id)
    ).all()
    revocations.cancel_runs(tx, revoked, by_user_id=by_user_id)
    return revoked


def has_any(sql: Connection, *, org_id: UUID, user_id: UUID) -> bool:
    """Return whether a key of the user in the org is in force."""
    of_user = (api_keys.c.org_id == org_id) & (api_keys.c.user_id == user_id)
    return bool(sql.scalar(select(select(api_keys.c.id).where(of_user, *_IN_FORCE).exists())))


def find(sql: Connection, key: str) -> Row[Any] | None:
    """Find the row of a valid key, with its user's `role`, and since when its org is suspended.

    None if there is none.
    """
    return _find(sql, api_keys.c.key_hash == hash_of(key)) if is_well_formed(key) else None


def permissions_of(key: Row[Any]) -> frozenset[str]:
    """Return what a key that `find` has found allows: no more than its user may do now."""
    of_user = PERMISSIONS_OF_ROLE[key.role] | ({OPERATE} if key.is_operator else set())
    return of_user & frozenset(key.scopes)


def find_by_id(sql: Connection, key_id: UUID) -> Row[Any] | None:
    """Find a key as `find` does, by its id."""
    return _find(sql, api_keys.c.id == key_id)


def _find(sql: Connection, matching: ColumnElement[bool]) -> Row[Any] | None:
    return sql.execute(
        select(
            api_keys,
            memberships.c.role,
            operators.is_operator(api_keys.c.user_id).label("is_operator"),
            suspensions.since(api_keys.c.org_id),
        )
        .join(
            memberships,
            (memberships.c.user_id == api_keys.c.user_id)
            & (memberships.c.org_id == api_keys.c.org_id),
        )
        .where(matching, *_IN_FORCE)
    ).one_or_none()


def mark_used(tx: Transaction, key_id: UUID) -> None:
    """Note that the key is in use, unless it is being changed: its next use is noted then.

    A first monthly limit sums up what the key has spent, and a revocation cancels its runs. The
    thread that waited for that would send no process word of new runs meanwhile.
    """
    free = select(api_keys.c.id).where(api_keys.c.id == key_id)
    free = free.with_for_update(key_share=True, skip_locked=True)
    used = update(api_keys).where(api_keys.c.id.in_(free)).values(last_used_at=func.now())
    tx.sql.execute(used)


def _seen_by(actor: Actor) -> ColumnElement[bool]:
    in_org = api_keys.c.org_id == actor.org_id
    return in_org if actor.writes_all else in_org & (api_keys.c.user_id == actor.user_id)


def _checksum(random: str) -> str:
    number = zlib.crc32(random.encode())
    digits = ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = _ALPHABET[digit] + digits
    return digits
