"""Files: the rows that say which there are, and whose.

The row comes first: it is `pending`, with an `expires_at`, while the bytes are written, so that a
crash at any moment leaves a row by which `expiry` finds what to remove. Deleting a file makes it
expire now; the row of a pending one stays until its upload must have ended.
"""

from collections.abc import Collection, Iterable
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, or_, select, update

from arkloop.shared.actors import Actor
from arkloop.shared.errors import FileMissing
from arkloop.shared.files.incoming import Facts
from arkloop.shared.ids import new_id
from arkloop.shared.storage.arrays import is_among
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.accounts import MOVED_ORGS
from arkloop.shared.storage.tables.files import files

#: Longer than any upload may take.
PENDING = timedelta(hours=1)
MAX_NAME_CHARACTERS = 200


def key_of(org_id: UUID, file_id: UUID) -> str:
    """Return where the storage has the file's bytes."""
    return f"{org_id}/{file_id}"


def create(
    tx: Transaction, *, org_id: UUID, user_id: UUID, name: str, end_user_id: str | None = None
) -> UUID:
    """Create a pending file, whose bytes are written next; returns its id.

    An end user sees files of their `end_user_id` alone.
    """
    file_id = new_id()
    tx.sql.execute(
        insert(files).values(
            id=file_id,
            org_id=org_id,
            created_by_user_id=user_id,
            end_user_id=end_user_id,
            name=name,
            expires_at=func.now() + PENDING,
        )
    )
    return file_id


def complete(
    tx: Transaction, file_id: UUID, facts: Facts, *, kept_for: timedelta | None = None
) -> Row[Any]:
    """Make a pending file visible: its bytes are stored. It expires after `kept_for`, if given.

    Raises:
        FileMissing: it has expired while it was written.
    """
    statement = (
        update(files)
        .where(files.c.id == file_id, files.c.stored_at.is_(None), _is_alive())
        .values(
            media_type=facts.media_type,
            size=facts.size,
            sha256=facts.sha256,
            stored_at=func.now(),
            expires_at=None if kept_for is None else func.now() + kept_for,
        )
    )
    row = tx.sql.execute(statement.returning(*files.c)).one_or_none()
    if row is None:
        raise FileMissing()
    return row


def keep(tx: Transaction, file_ids: Collection[UUID]) -> None:
    """Let files that are complete expire no more, but for those that have been deleted."""
    # By the clock: a deletion that this waits for may have begun after the transaction.
    is_alive = files.c.expires_at > func.clock_timestamp()
    kept = update(files).where(files.c.id.in_(file_ids), is_alive)
    tx.sql.execute(kept.values(expires_at=None))


def end_uploads(tx: Transaction, org_id: UUID) -> None:
    """Make pending files of an org expire: `complete` refuses what is still being written."""
    pending = (files.c.org_id == org_id) & files.c.stored_at.is_(None) & _is_alive()
    tx.sql.execute(update(files).where(pending).values(expires_at=func.now()))


def find(sql: Connection, actor: Actor, file_id: UUID) -> Row[Any]:
    """Find a file that the actor sees.

    Raises:
        FileMissing: pending, deleted and expired ones too.
    """
    for row in of_ids(sql, actor.org_id, [file_id], end_user_id=actor.end_user_id):
        return row
    raise FileMissing()


def of_ids(
    sql: Connection, org_id: UUID, file_ids: Iterable[UUID], *, end_user_id: str | None = None
) -> list[Row[Any]]:
    """Return those of the files that the org has, or that one of its end users may read."""
    query = select(files).where(
        files.c.id.in_(set(file_ids)),
        files.c.org_id == org_id,
        files.c.stored_at.is_not(None),
        _is_alive(),
    )
    if end_user_id is not None:
        query = query.where(files.c.end_user_id == end_user_id)
    return list(sql.execute(query))


def of_end_user(
    sql: Connection, org_id: UUID, end_user_id: str, also: Collection[UUID] = ()
) -> list[Row[Any]]:
    """List the files of an end user: id, name, media_type, size and created_at.

    `also` are those of these ids that the org has for no end user.
    """
    columns = (files.c.id, files.c.name, files.c.media_type, files.c.size, files.c.created_at)
    which = _is_of_end_user(org_id, end_user_id, also)
    return list(sql.execute(select(*columns).where(which, _is_alive()).order_by(files.c.id)))


def remove(tx: Transaction, actor: Actor, file_id: UUID) -> None:
    """Delete a file: it is gone for everybody now, its bytes soon.

    Raises:
        FileMissing
        Forbidden: it is somebody else's, and the actor is a member.
    """
    actor.check_may_write("the file", find(tx.sql, actor, file_id).created_by_user_id)
    tx.sql.execute(update(files).where(files.c.id == file_id).values(expires_at=func.now()))


def remove_all(
    tx: Transaction,
    *,
    org_id: UUID | None = None,
    end_user_id: str | None = None,
    created_by_user_id: UUID | None = None,
    file_ids: Collection[UUID] = (),
) -> int:
    """Delete, as `remove` does, all files of an end user of the org, with those of the ids that the
    org has for no end user, or those of the ids that the user has created; returns how many.
    """
    if org_id is not None and end_user_id is not None:
        which = _is_of_end_user(org_id, end_user_id, file_ids)
    else:
        which = is_among(files.c.id, file_ids) & (files.c.created_by_user_id == created_by_user_id)
    removed = update(files).where(which, _is_alive()).values(expires_at=func.now())
    return tx.sql.execute(removed).rowcount


def expired(sql: Connection, *, limit: int) -> list[Row[Any]]:
    """List expired files that nobody may write any more, those first that expired first.

    Those of orgs that have moved are left out: cells share a storage, and the file may have been
    completed or kept in the other one.
    """
    # Bytes that are stored after they were removed would stay without a row.
    is_written = files.c.stored_at.is_(None) & (files.c.created_at + PENDING > func.now())
    is_expired = (files.c.expires_at <= func.now()) & ~is_written
    here = select(files.c.id, files.c.org_id).where(is_expired, files.c.org_id.not_in(MOVED_ORGS))
    return list(sql.execute(here.order_by(files.c.expires_at).limit(limit)))


def postpone(tx: Transaction, file_ids: Collection[UUID]) -> None:
    """Let expired files, whose bytes could not be removed, come after all that have expired."""
    is_expired = files.c.expires_at <= func.now()
    postponed = update(files).where(files.c.id.in_(file_ids), is_expired)
    tx.sql.execute(postponed.values(expires_at=func.now()))


def forget(tx: Transaction, file_ids: Collection[UUID]) -> None:
    """Delete the rows of expired files, whose bytes are removed."""
    tx.sql.execute(delete(files).where(files.c.id.in_(file_ids), files.c.expires_at <= func.now()))


def _is_of_end_user(org_id: UUID, end_user_id: str, also: Collection[UUID]) -> ColumnElement[bool]:
    is_also = files.c.end_user_id.is_(None) & is_among(files.c.id, also)
    return (files.c.org_id == org_id) & ((files.c.end_user_id == end_user_id) | is_also)


def _is_alive() -> ColumnElement[bool]:
    return or_(files.c.expires_at.is_(None), files.c.expires_at > func.now())
