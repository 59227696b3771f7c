"""Folders that settings name: whether they can be used."""

import os
from pathlib import Path


def unwritable(folder: Path) -> str | None:
    """Return why this user cannot write to the folder, or create it; None if it can."""
    existing = folder.absolute()
    while not os.path.exists(existing):  # `Path.exists` can raise EACCES
        existing = existing.parent
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return None
    return f"{str(existing)!r} is not a directory that this user may write to"
