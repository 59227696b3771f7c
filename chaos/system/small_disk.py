"""A disk that can be full: a file system in memory, of a size of our own. Needs root."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_STEP = 256 * 1024


def lacks() -> str | None:
    """Return why this machine cannot have one, None if it can."""
    return None if os.geteuid() == 0 else "only root may mount a file system"


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """Mount a new file system at `folder` for the length of the block."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Fill the file system of `folder` to the last byte within the block."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"\0" * _STEP)
        with ballast.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"\0" * 512)
        yield
    finally:
        ballast.unlink(missing_ok=True)
