"""The removal of expired files, where the storage does not remove each of them."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, update

from arkloop.shared.errors import FileMissing, StorageUnavailable
from arkloop.shared.files import expiry, files
from arkloop.shared.files.incoming import Facts
from arkloop.shared.files.local_storage import LocalStorage
from arkloop.shared.ids import new_id
from arkloop.shared.storage import epoch
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.accounts import orgs
from arkloop.shared.storage.tables.files import files as table
from tests.clients import User
from tests.contents import png
from tests.query_plans import only
from tests.stored_runs import ago


@pytest.fixture(autouse=True)
def nothing_expired(connections: Connections, tmp_path: Path) -> None:
    """A database without expired files of other tests."""
    while expiry.remove_expired(connections, LocalStorage(str(tmp_path))):
        pass


def pending_file(connections: Connections, owner: User) -> UUID:
    with connections.transaction() as tx:
        return files.create(tx, org_id=owner.org_id, user_id=owner.id, name="a.png")


def delete(connections: Connections, owner: User) -> None:
    """Delete all files of the org, which are pending since crashes of long ago."""
    with connections.transaction() as tx:
        files.end_uploads(tx, owner.org_id)
        begun = table.c.created_at - files.PENDING
        of_org = table.c.org_id == owner.org_id
        tx.sql.execute(update(table).where(of_org).values(created_at=begun))


def make_irremovable(storage_folder: Path, owner: User, file_ids: Iterable[UUID]) -> None:
    """Put a directory in the place of each: no process, not even root's, can unlink it."""
    for file_id in file_ids:
        (storage_folder / files.key_of(owner.org_id, file_id)).mkdir(parents=True)


def complete(connections: Connections, storage: LocalStorage, owner: User) -> UUID:
    """Store the bytes of a file that nothing keeps, and that expires an hour later."""
    file_id = pending_file(connections, owner)
    with storage.writing(files.key_of(owner.org_id, file_id)) as writer:
        writer.write(png())
        writer.commit()
    with connections.transaction() as tx:
        facts = Facts("image/png", len(png()), "0" * 64)
        files.complete(tx, file_id, facts, kept_for=files.PENDING)
    return file_id


def change_org(connections: Connections, owner: User, **columns: Any) -> None:
    with connections.transaction() as tx:
        tx.sql.execute(update(orgs).where(orgs.c.id == owner.org_id).values(**columns))


def rows(connections: Connections, owner: User) -> set[UUID]:
    with connections.reading() as sql:
        return set(sql.scalars(select(table.c.id).where(table.c.org_id == owner.org_id)))


def test_a_file_that_cannot_be_removed_keeps_no_other(
    alice: User, connections: Connections, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The others of its batch are gone, with their rows; the log names it."""
    _before, stuck, _after = (pending_file(connections, alice) for _ in range(3))
    make_irremovable(tmp_path, alice, [stuck])
    delete(connections, alice)

    assert 2 == expiry.remove_expired(connections, LocalStorage(str(tmp_path)))

    assert {stuck} == rows(connections, alice)
    assert f"expired files that could not be removed: 1, the last {stuck}: " in caplog.text
    (tmp_path / files.key_of(alice.org_id, stuck)).rmdir()
    assert 1 == expiry.remove_expired(connections, LocalStorage(str(tmp_path)))
    assert set() == rows(connections, alice)


def test_an_upload_that_ends_after_its_file_was_deleted_leaves_nothing(
    alice: User, connections: Connections, tmp_path: Path
) -> None:
    """It is refused then, and its bytes are removed once no upload can be in progress."""
    storage, file_id = LocalStorage(str(tmp_path)), pending_file(connections, alice)
    key = files.key_of(alice.org_id, file_id)
    with storage.writing(key) as writer:
        writer.write(png())
        with connections.transaction() as tx:
            assert 1 == files.remove_all(tx, created_by_user_id=alice.id, file_ids=[file_id])
        assert 0 == expiry.remove_expired(connections, storage)
        writer.commit()

    with pytest.raises(FileMissing), connections.transaction() as tx:
        files.complete(tx, file_id, Facts("image/png", len(png()), "0" * 64))
    delete(connections, alice)
    assert 1 == expiry.remove_expired(connections, storage)

    assert [] == list((tmp_path / str(alice.org_id)).iterdir())
    assert set() == rows(connections, alice)


def test_a_file_that_was_deleted_before_its_message_is_not_kept(
    alice: User, connections: Connections, tmp_path: Path
) -> None:
    """Its deletion counts, also if it is younger than the transaction that creates the message."""
    kept, deleted = (pending_file(connections, alice) for _ in range(2))
    with connections.transaction() as tx:
        for file_id in (kept, deleted):
            facts = Facts("image/png", len(png()), "0" * 64)
            files.complete(tx, file_id, facts, kept_for=files.PENDING)

    with connections.transaction() as tx:
        tx.sql.execute(select(func.now()))  # it has begun
        with connections.transaction() as other:
            assert 1 == files.remove_all(other, created_by_user_id=alice.id, file_ids=[deleted])
        files.keep(tx, [kept, deleted])

    with connections.reading() as sql:
        unexpired = select(table.c.id).where(table.c.org_id == alice.org_id)
        assert [kept] == list(sql.scalars(unexpired.where(table.c.expires_at.is_(None))))
    assert 1 == expiry.remove_expired(connections, LocalStorage(str(tmp_path)))
    assert {kept} == rows(connections, alice)


class Hanging(LocalStorage):
    """A directory in which each removal takes too long."""

    removals = 0

    def remove(self, key: str) -> None:
        self.removals += 1
        raise StorageUnavailable() from TimeoutError()


def test_a_storage_that_hangs_is_left_alone(
    alice: User, connections: Connections, tmp_path: Path
) -> None:
    """Each removal holds a thread of the process, so a step makes no more than one."""
    waiting = {pending_file(connections, alice) for _ in range(3)}
    delete(connections, alice)
    storage = Hanging(str(tmp_path))

    assert [0, 0] == [expiry.remove_expired(connections, storage) for _ in range(2)]

    assert (2, waiting) == (storage.removals, rows(connections, alice))
    assert 3 == expiry.remove_expired(connections, LocalStorage(str(tmp_path)))


def test_files_that_cannot_be_removed_do_not_fill_each_batch(
    alice: User, connections: Connections, tmp_path: Path
) -> None:
    """The next step comes to the files that expired after them."""
    stuck = {pending_file(connections, alice) for _ in range(expiry.BATCH)}
    make_irremovable(tmp_path, alice, stuck)
    delete(connections, alice)
    pending_file(connections, alice)
    delete(connections, alice)
    storage = LocalStorage(str(tmp_path))

    assert [0, 1] == [expiry.remove_expired(connections, storage) for _ in range(2)]

    assert stuck == rows(connections, alice)


@pytest.mark.parametrize("of_cell", [new_id, epoch.own])
def test_files_of_an_org_that_has_moved_keep_their_bytes(
    alice: User, connections: Connections, tmp_path: Path, of_cell: Callable[[], Any]
) -> None:
    """Cells share a storage: what has expired or was deleted here can be in use in the other one.

    This cell may be the one that the org has left, or have a copy that was not resumed. What
    expired meanwhile is removed once the org is open here.
    """
    storage = LocalStorage(str(tmp_path))
    for _ in range(2):
        complete(connections, storage, alice)
    expired, deleted = rows(connections, alice)
    with connections.transaction() as tx:
        is_pending = {"stored_at": None, "created_at": ago(hours=2), "expires_at": ago(hours=1)}
        tx.sql.execute(update(table).where(table.c.id == expired).values(**is_pending))
        assert 1 == files.remove_all(tx, created_by_user_id=alice.id, file_ids=[deleted])
    moved = {"suspended_at": func.now(), "suspension_reason": "It moves.", "moved_to": of_cell()}
    change_org(connections, alice, **moved)

    while expiry.remove_expired(connections, storage):
        pass  # those of other tests

    for file_id in (expired, deleted):
        assert png() == b"".join(storage.read(files.key_of(alice.org_id, file_id)))
    change_org(connections, alice, **dict.fromkeys(moved))
    assert 2 == expiry.remove_expired(connections, storage)
    assert set() == rows(connections, alice)


@pytest.mark.owner
def test_expired_files_are_found_by_indexes(connections: Connections) -> None:
    """Neither all files nor all orgs are read, with any values."""
    plans = only(connections, lambda sql: files.expired(sql, limit=expiry.BATCH))

    plans.check({"ix_files_expires_at", "ix_orgs_suspended"})
