"""The files that `arkloop dev` keeps: databases, uploads, secrets, the API key, the lock."""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from arkloop.cli.private_file import write_private

#: Seconds to wait for a killed `arkloop dev`, which still stops its processes.
LOCK_WAIT_SECONDS = 20
SECRET_NAMES = ("ARKLOOP_JWT_SECRET", "ARKLOOP_ENCRYPTION_KEY")


class DataFolderInUse(Exception):
    """Another `arkloop dev` lives on this folder."""


class DataFolder:
    """The folder that `--data` names, `.arkloop` by default."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.postgres = self.path / "postgres"
        self.redis = self.path / "redis"
        self.files = self.path / "files"
        self.api_key = self.path / "api-key"
        self.url = self.path / "url"
        self._secrets = self.path / "secrets.json"

    @contextmanager
    def locked(self, owner: int) -> Iterator[None]:
        """Hold the folder for the process `owner`; the kernel frees it when we end, however.

        Raises:
            DataFolderInUse: its owner lives; the folder is untouched.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a+") as lock:
            self._acquire(lock.fileno())
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), f"{owner}\n".encode())
            yield

    def _acquire(self, descriptor: int) -> None:
        deadline = time.monotonic() + LOCK_WAIT_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                owner = os.pread(descriptor, 32, 0).decode().strip()
                if not owner.isdigit() or _lives(int(owner)) or time.monotonic() > deadline:
                    raise DataFolderInUse(
                        f"{self.path} is in use by another arkloop dev (process {owner or '?'}): "
                        "stop it first, or give this one a folder of its own with --data"
                    ) from None
                time.sleep(0.05)

    def secrets(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the secrets made at the first start; the environment's take precedence."""
        try:
            kept = json.loads(self._secrets.read_text())
        except FileNotFoundError:
            kept = {}
        missing = {name: secrets.token_hex(32) for name in SECRET_NAMES if name not in kept}
        if missing:
            kept |= missing
            write_private(self._secrets, json.dumps(kept, indent=2) + "\n")
        return {name: environ.get(name) or kept[name] for name in SECRET_NAMES}


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        # A killed process whose parent has not yet noticed counts as gone.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True
