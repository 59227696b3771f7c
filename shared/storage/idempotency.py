"""Idempotency keys: the first answer is kept beside what it made, in one transaction.

Who comes with a key takes an advisory lock that lasts as long as the
transaction; the row with the answer is written at its end. So there is never a
key without an answer, and a crash leaves neither.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID, uuid5

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.dialects.postgresql import insert as upsert

from arkloop.shared.errors import IdempotencyConflict
from arkloop.shared.storage.arrays import is_among
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.storage import idempotency_keys

KEPT = timedelta(hours=24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """A key means something only for one actor, by `sender`, at one path."""

    org_id: UUID
    actor_id: UUID
    path: str
    key: str

    def lock_key(self) -> int:
        """Compute a signed 64-bit key; two scopes with the same one only wait for each other."""
        name = f"{self.org_id} {self.actor_id} {self.path} {self.key}"
        digest = hashlib.sha256(name.encode()).digest()
        return int.from_bytes(digest[:8], "big", signed=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAnswer:
    status: int
    headers: Mapping[str, str]
    body: str


def sender(issuer: UUID, end_user_id: str | None, thread_id: UUID | None) -> UUID:
    """Return the `actor_id` of an API key or user, or that of an end user for whom it has issued a
    client token, perhaps for one thread.
    """
    if end_user_id is None:
        return issuer
    return uuid5(issuer, json.dumps([end_user_id, str(thread_id)]))


def claim(tx: Transaction, scope: Scope) -> bool:
    """Take the key until the transaction ends; False if another transaction has it."""
    return bool(tx.sql.scalar(select(func.pg_try_advisory_xact_lock(scope.lock_key()))))


def find(tx: Transaction, scope: Scope, request_hash: str) -> StoredAnswer | None:
    """Find the response given before; call this after `claim`.

    Raises:
        IdempotencyConflict: it was the answer to another body.
    """
    row = tx.sql.execute(
        select(idempotency_keys).where(
            *_is(scope), idempotency_keys.c.created_at > func.now() - KEPT
        )
    ).one_or_none()
    if row is None:
        return None
    if row.request_hash != request_hash:
        raise IdempotencyConflict()
    return StoredAnswer(status=row.status, headers=row.headers, body=row.body)


def keep(tx: Transaction, scope: Scope, request_hash: str, answer: StoredAnswer) -> None:
    """Store the answer for 24 h; takes the place of an older one."""
    values = {
        "request_hash": request_hash,
        "status": answer.status,
        "headers": dict(answer.headers),
        "body": answer.body,
        "created_at": func.now(),
    }
    tx.sql.execute(
        upsert(idempotency_keys)
        .values(
            org_id=scope.org_id, actor_id=scope.actor_id, path=scope.path, key=scope.key, **values
        )
        .on_conflict_do_update(index_elements=["org_id", "actor_id", "path", "key"], set_=values)
    )


def delete_old(tx: Transaction, *, limit: int) -> int:
    """Delete at most `limit` answers that are kept no longer; returns how many."""
    names = ("org_id", "actor_id", "path", "key")
    old = (
        select(*(idempotency_keys.c[name] for name in names))
        .where(idempotency_keys.c.created_at < func.now() - KEPT)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("old")
    )
    return tx.sql.execute(
        delete(idempotency_keys).where(*(idempotency_keys.c[name] == old.c[name] for name in names))
    ).rowcount


def forget_actors(tx: Transaction, actor_ids: Collection[UUID]) -> None:
    """Delete the stored responses to these API keys or users."""
    tx.sql.execute(delete(idempotency_keys).where(is_among(idempotency_keys.c.actor_id, actor_ids)))


def forget_end_user(
    tx: Transaction,
    org_id: UUID,
    end_user_id: str,
    *,
    issuers: Iterable[UUID],
    thread_ids: Collection[UUID | None],
) -> None:
    """Delete the stored responses to an end user whose client tokens one of these API keys or users
    has issued, for one of these threads or, with None, for no particular one.
    """
    senders = [
        sender(issuer, end_user_id, thread_id) for issuer in issuers for thread_id in thread_ids
    ]
    of_theirs = is_among(idempotency_keys.c.actor_id, senders)
    tx.sql.execute(delete(idempotency_keys).where(idempotency_keys.c.org_id == org_id, of_theirs))


def _is(scope: Scope) -> tuple[ColumnElement[bool], ...]:
    return (
        idempotency_keys.c.org_id == scope.org_id,
        idempotency_keys.c.actor_id == scope.actor_id,
        idempotency_keys.c.path == scope.path,
        idempotency_keys.c.key == scope.key,
    )
