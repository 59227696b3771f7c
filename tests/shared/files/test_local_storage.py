"""Files in a directory."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from arkloop.shared import folders
from arkloop.shared.errors import StorageUnavailable
from arkloop.shared.files.local_storage import LocalStorage
from arkloop.shared.files.storage import ObjectMissing, UnusableStorage
from tests.full_disk import full_disk


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def put(storage: LocalStorage, key: str, *pieces: bytes) -> None:
    with storage.writing(key) as writer:
        for piece in pieces:
            writer.write(piece)
        writer.commit()


def test_what_is_committed_is_read(tmp_path: Path) -> None:
    """Pieces come back in order, also where there are many of them."""
    storage = LocalStorage(str(tmp_path / "new"))
    put(storage, "org/file", b"a" * 300_000, b"b" * 300_000)

    assert b"a" * 300_000 + b"b" * 300_000 == b"".join(storage.read("org/file"))
    assert ["new/org/file"] == names(tmp_path)


def test_without_a_commit_nothing_exists(tmp_path: Path) -> None:
    """Neither by an error nor by the end of the block; nothing is left of it."""
    storage = LocalStorage(str(tmp_path))
    with storage.writing("org/1") as writer:
        writer.write(b"a")
    with pytest.raises(ZeroDivisionError), storage.writing("org/2") as writer:
        writer.write(b"a")
        _ = 1 / 0

    assert [] == names(tmp_path)
    with pytest.raises(ObjectMissing):
        storage.read("org/1")


def test_removal_takes_what_a_crash_left(tmp_path: Path) -> None:
    """The object and the file that a dead writer was writing go; absent ones are no error."""
    storage = LocalStorage(str(tmp_path))
    put(storage, "org/1", b"a")
    (tmp_path / "org" / "2.part").write_bytes(b"half")

    for key in ("org/1", "org/2", "org/3", "nobody/4"):
        storage.remove(key)

    assert [] == names(tmp_path)


def test_a_rename_whose_response_was_lost_is_done(tmp_path: Path) -> None:
    """NFS repeats it then, and the repetition finds nothing to rename."""
    storage = LocalStorage(str(tmp_path))
    with storage.writing("org/1") as writer:
        writer.write(b"a" * 300_000)
        (tmp_path / "org" / "1.part").rename(tmp_path / "org" / "1")
        writer.write(b"b")
        writer.commit()

    assert b"a" * 300_000 + b"b" == b"".join(storage.read("org/1"))
    assert ["org/1"] == names(tmp_path)


def test_a_file_that_vanishes_while_it_is_written_is_unavailable(tmp_path: Path) -> None:
    """A writer reports no missing object: it looks for none."""
    storage = LocalStorage(str(tmp_path))
    with pytest.raises(StorageUnavailable), storage.writing("org/1") as writer:
        writer.write(b"a")
        (tmp_path / "org" / "1.part").unlink()
        writer.commit()

    assert [] == names(tmp_path)


def test_a_disk_that_fails_is_unavailable(tmp_path: Path) -> None:
    """The error of the system becomes 503 for a client."""
    (tmp_path / "org").write_bytes(b"a file where a directory should be")
    storage = LocalStorage(str(tmp_path))

    with pytest.raises(StorageUnavailable), storage.writing("org/1"):
        pass


def test_a_full_disk_is_unavailable(tmp_path: Path) -> None:
    """It is found by the commit, which writes the last bytes; nothing is left of the object."""
    storage = LocalStorage(str(tmp_path))

    with pytest.raises(StorageUnavailable), full_disk():
        put(storage, "org/1", b"a")

    assert [] == names(tmp_path)


#: Prints the actions on an unfinished file, and whether another native thread made them.
WATCHED = """
from gevent import monkey
monkey.patch_all()
import sys
from arkloop.shared.files.local_storage import LocalStorage

get_ident = monkey.get_original("_thread", "get_ident")
first, elsewhere = get_ident(), []

def watch(event, args):
    if str(args[:1]).endswith(".part',)"):
        elsewhere.append((event, get_ident() != first))

storage = LocalStorage(sys.argv[1])
sys.addaudithook(watch)
with storage.writing("org/1") as writer:
    writer.write(b"a")
print(elsewhere)
"""


@pytest.mark.processes
def test_a_file_system_that_hangs_stops_no_other_greenlet(tmp_path: Path) -> None:
    """A file is opened and, without a commit, closed and removed in a native thread."""
    command = [sys.executable, "-c", WATCHED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=180)

    assert "[('open', True), ('os.remove', True)]" == done.stdout.strip()


#: Opens and reads files that hang, and prints what comes of it and of a file after that.
HANGING = """
from gevent import monkey
monkey.patch_all()
import gevent, os, sys
from arkloop.shared.files import local_storage

local_storage.HANGING_SECONDS, local_storage.CLOSING_SECONDS = 1, 0.1
folder, storage = sys.argv[1], local_storage.LocalStorage(sys.argv[1])
for name in ("opened", "read"):
    os.mkfifo(f"{folder}/{name}")
writing = os.open(f"{folder}/read", os.O_RDWR)
with open(f"{folder}/other", "wb") as file:
    file.write(b"other")

def content(name):
    try:
        return b"".join(storage.read(name))
    except Exception as error:
        return f"{type(error).__name__} {type(error.__cause__).__name__}"

def all_of(*names):
    return [waiting.get() for waiting in [gevent.spawn(content, name) for name in names]]

print(all_of(*["opened", "read"] * 4))
print(all_of("other"))  # not with them: it would be read if it came before the last of them
with gevent.Timeout(30):
    os.write(writing, b"late")
    os.close(writing)
    os.close(os.open(f"{folder}/opened", os.O_RDWR))
    local_storage.HANGING_SECONDS = 30  # it is read by a thread that has to continue first
    print(all_of("other"))
"""


@pytest.mark.processes
def test_a_file_that_hangs_is_given_up(tmp_path: Path) -> None:
    """All threads are taken by such files: each call ends, and the storage is used again."""
    command = [sys.executable, "-c", HANGING, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=180)

    hung = "StorageUnavailable TimeoutError"
    assert (f"{[hung] * 8}\n{[hung]}\n[b'other']\n", "") == (done.stdout, done.stderr)


def test_a_directory_is_checked_before_it_is_needed(tmp_path: Path) -> None:
    """It is not created by the check; one that cannot be created is named."""
    LocalStorage(str(tmp_path / "a" / "b")).check()
    assert [] == list(tmp_path.iterdir())

    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnusableStorage, match="ARKLOOP_FILES_DIR: .*file/files' cannot be written"):
        LocalStorage(str(tmp_path / "file" / "files")).check()
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(UnusableStorage):
            LocalStorage(str(tmp_path / "files")).check()


def test_a_directory_that_hangs_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The process starts with a warning, as without S3; its file system may respond later."""
    released = threading.Event()
    monkeypatch.setattr(os, "access", lambda *_: released.wait(20))
    monkeypatch.setattr(folders, "RESPONSE_SECONDS", 0.2)
    try:
        advice = LocalStorage(str(tmp_path)).check()
    finally:
        released.set()

    line = f"folder {tmp_path}: it does not respond within 0.2 s: files are unavailable"
    assert [line] == caplog.messages
    assert (advice or "").startswith("Look at the file system of ARKLOOP_FILES_DIR")
