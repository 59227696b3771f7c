"""Files in a directory of this machine, or of a file system that all machines share."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from arkloop.shared import folders
from arkloop.shared.errors import StorageUnavailable
from arkloop.shared.files.storage import PIECE_BYTES, ObjectMissing, UnusableStorage
from arkloop.shared.native_threads import NativeThreads

log = logging.getLogger(__name__)

#: Disks may be slow, and those of a network may hang.
_THREADS = NativeThreads(8)
#: A slow disk takes less to store the largest file.
HANGING_SECONDS = 60
#: A file whose storage hangs is closed later; other waits need not be longer for it.
CLOSING_SECONDS = 5
_UNFINISHED = ".part"
_SILENT = "Look at the file system of ARKLOOP_FILES_DIR, and at its server if there is one."

T = TypeVar("T")


class LocalStorage:
    """Each object is a file `<directory>/<key>`, written under another name and then renamed."""

    def __init__(self, directory: str) -> None:
        self._root = Path(directory)

    def check(self) -> str | None:
        """Check that the directory can be written, or created; it is created with the first file.

        Raises:
            UnusableStorage
        """
        try:
            why = folders.unwritable(self._root)
        except TimeoutError as error:
            log.warning("folder %s: %s: files are unavailable", self._root, error)
            return _SILENT
        if why is not None:
            raise UnusableStorage(
                f"ARKLOOP_FILES_DIR: {str(self._root.absolute())!r} cannot be written: {why}"
            )
        return None

    @contextmanager
    def writing(self, key: str) -> Iterator["_LocalWriter"]:
        path = self._root / key
        writer = _LocalWriter(_call(_create, path), path)
        try:
            yield writer
        finally:
            writer.close()

    def read(self, key: str) -> Iterator[bytes]:
        return _pieces(_call(_open, self._root / key))

    def remove(self, key: str) -> None:
        path = self._root / key
        for name in (path, _unfinished(path)):
            _call(_remove, name)


class _LocalWriter:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path

    def write(self, data: bytes) -> None:
        _call(self._file.write, data)

    def commit(self) -> None:
        _call(_persist, self._file, self._path)

    def close(self) -> None:
        _THREADS.finish(_discard, self._file, self._path, seconds=CLOSING_SECONDS)


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + _UNFINISHED)


def _create(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return _unfinished(path).open("xb")


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise ObjectMissing(path.name) from None


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _persist(file: BinaryIO, path: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    try:
        os.rename(_unfinished(path), path)
    except FileNotFoundError:
        # NFS repeats a call whose response was lost: it was renamed by the first one.
        if os.stat(path).st_size != os.fstat(file.fileno()).st_size:
            raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _discard(file: BinaryIO, path: Path) -> None:
    """Close the file and remove it, unless `_persist` has renamed it. Raises nothing."""
    with suppress(OSError):  # what a full disk has refused is written once more by `close`
        file.close()
    with suppress(OSError):  # it was renamed, or the sweep removes it
        os.unlink(_unfinished(path))


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    try:
        while piece := _call(file.read, PIECE_BYTES):
            yield piece
    finally:
        # Not here: a file that is being read in another thread is closed only after that.
        _THREADS.finish(_close, file, seconds=CLOSING_SECONDS)


def _close(file: BinaryIO) -> None:
    with suppress(OSError):  # it was only read
        file.close()


def _call(function: Callable[..., T], *args: Any) -> T:
    try:
        return _THREADS.call(function, *args, seconds=HANGING_SECONDS)
    except OSError as error:  # one of them is TimeoutError
        raise StorageUnavailable() from error
