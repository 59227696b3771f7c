"""Envelope encryption: each org has a key for its secrets, which the keys of the setting encrypt.

Whatever reads a secret reads the org's key with it, in the same statement where it can: no process
keeps keys, so that an org's secrets are gone as soon as its key is.
"""

import secrets
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, ScalarSelect, delete, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from arkloop.shared.security.encryption import (
    CannotOpen,
    Keyring,
    NoEncryptionKey,
    OrgKey,
    is_of_org_key,
)
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.tables.sealing import org_keys

_PURPOSE = "org_keys.key"


def wrapped_key(org_id: Any) -> ScalarSelect[Any]:
    """Build SQL: the encrypted key of an org, null if it has none; for `opened`."""
    return select(org_keys.c.wrapped).where(org_keys.c.org_id == org_id).scalar_subquery()


def opened(
    keyring: Keyring, wrapped: bytes | None, sealed: bytes, *, org_id: UUID, purpose: str
) -> str:
    """Decrypt a secret by the org's key, or if it is older than that, by the keyring.

    Raises:
        NoEncryptionKey, CannotOpen
    """
    if not is_of_org_key(sealed):
        return keyring.open(sealed, org_id=org_id, purpose=purpose)
    if wrapped is None:
        raise CannotOpen("encrypted with a key of the organization that was erased")
    return unwrapped(keyring, wrapped, org_id).open(sealed, purpose=purpose)


def open_(sql: Connection, keyring: Keyring, sealed: bytes, *, org_id: UUID, purpose: str) -> str:
    """Read the org's key and decrypt, as `opened` does."""
    wrapped = sql.scalar(select(wrapped_key(org_id))) if is_of_org_key(sealed) else None
    return opened(keyring, wrapped, sealed, org_id=org_id, purpose=purpose)


def seal(tx: Transaction, keyring: Keyring, text: str, *, org_id: UUID, purpose: str) -> bytes:
    """Encrypt a secret with the org's key, which is made if the org has none.

    Raises:
        NoEncryptionKey: no key is set, or not the one that the org's key is encrypted with.
    """
    query = select(org_keys.c.wrapped).where(org_keys.c.org_id == org_id)
    wrapped = tx.sql.scalar(query)
    if wrapped is None:
        made = keyring.seal(secrets.token_hex(32), org_id=org_id, purpose=_PURPOSE)
        statement = upsert(org_keys).values(org_id=org_id, wrapped=made)
        tx.sql.execute(statement.on_conflict_do_nothing())
        wrapped = tx.sql.execute(query).scalar_one()
    try:
        return unwrapped(keyring, wrapped, org_id).seal(text, purpose=purpose)
    except CannotOpen as error:
        raise NoEncryptionKey(f"the organization's key is {error}") from error


def unwrapped(keyring: Keyring, wrapped: bytes, org_id: UUID) -> OrgKey:
    """Return the key of the org. Raises: NoEncryptionKey, CannotOpen."""
    key = keyring.open(wrapped, org_id=org_id, purpose=_PURPOSE)
    return OrgKey(bytes.fromhex(key), org_id)


def rewrap(connections: Connections, keyring: Keyring) -> tuple[int, int]:
    """Encrypt the keys of all orgs with the first key of the keyring.

    Returns how many were encrypted again, and how many cannot be decrypted.
    """
    with connections.reading() as sql:
        rows = sql.execute(select(org_keys.c.org_id, org_keys.c.wrapped)).all()
    again = unreadable = 0
    for org_id, before in rows:
        if keyring.is_up_to_date(before):
            continue
        try:
            key = keyring.open(before, org_id=org_id, purpose=_PURPOSE)
        except CannotOpen:
            unreadable += 1
            continue
        after = keyring.seal(key, org_id=org_id, purpose=_PURPOSE)
        is_it = (org_keys.c.org_id == org_id) & (org_keys.c.wrapped == before)
        with connections.statement() as tx:
            tx.sql.execute(update(org_keys).where(is_it).values(wrapped=after))
        again += 1
    return again, unreadable


def count_unreadable(sql: Connection, keyring: Keyring, *, most: int) -> tuple[int, int]:
    """Count the keys of the newest orgs, at most `most`, and those that cannot be decrypted."""
    query = select(org_keys.c.org_id, org_keys.c.wrapped).order_by(org_keys.c.org_id.desc())
    rows = sql.execute(query.limit(most)).all()
    unreadable = 0
    for org_id, wrapped in rows:
        try:
            unwrapped(keyring, wrapped, org_id)
        except (NoEncryptionKey, CannotOpen):
            unreadable += 1
    return len(rows), unreadable


def erase(tx: Transaction, org_id: UUID) -> bool:
    """Delete the key of the org, and so all secrets that it has encrypted; False without one."""
    return tx.sql.execute(delete(org_keys).where(org_keys.c.org_id == org_id)).rowcount > 0
