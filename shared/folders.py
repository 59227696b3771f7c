"""Folders that settings name: whether they can be used.

Their file system may be one of a network, and hang. Each function raises TimeoutError if it does
not respond within `RESPONSE_SECONDS`.
"""

import os
import tempfile
from pathlib import Path

from arkloop.shared.native_threads import call_within

RESPONSE_SECONDS = 5


def unwritable(folder: Path) -> str | None:
    """Return why this user cannot write to the folder, or create it; None if it can."""
    return call_within(RESPONSE_SECONDS, _unwritable, folder)


def without_room(folder: Path, size: int) -> str | None:
    """Return why no file of `size` bytes can be stored there; None if one was, and is gone.

    It is stored where the folder would be created if it does not exist.
    """
    return call_within(RESPONSE_SECONDS, _without_room, folder, size)


def _unwritable(folder: Path) -> str | None:
    existing = _existing(folder)
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return None
    return f"{str(existing)!r} is not a directory that this user may write to"


def _without_room(folder: Path, size: int) -> str | None:
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)) as file:
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return None


def _existing(folder: Path) -> Path:
    existing = folder.absolute()
    while not os.path.exists(existing):  # `Path.exists` can raise EACCES
        existing = existing.parent
    return existing
