"""The account that Postgres runs as when root starts it, since it refuses to run as root."""

import os
import pwd
from contextlib import suppress
from pathlib import Path

from arkloop.cli.dev.embedded_server import ServerDidNotStart

#: Any account without rights will do.
UNPRIVILEGED_ACCOUNTS = ("nobody", "daemon", "postgres")
#: What root uses to hand files to another account, become it, read its files and stop its
#: processes, with Linux' number of each. Container runtimes grant all of them by default.
_NEEDED_CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
}
_INSTEAD = "Run this as an ordinary user, or name a server in ARKLOOP_DATABASE_URL"


def account_of_servers() -> str | None:
    """Choose the account for servers started by root; None for an ordinary user.

    Raises:
        ServerDidNotStart: no such account exists, or root may not use it here.
    """
    if os.geteuid() != 0:
        return None
    lacking = _lacking_capabilities()
    if lacking:
        raise ServerDidNotStart(
            f"Postgres does not run as root, and root lacks {', '.join(lacking)} here, "
            f"which running it as another user requires. {_INSTEAD}"
        )
    for name in UNPRIVILEGED_ACCOUNTS:
        with suppress(KeyError):
            if pwd.getpwnam(name).pw_uid != 0:
                return name
    raise ServerDidNotStart(
        "Postgres does not run as root, and none of the accounts "
        f"{', '.join(UNPRIVILEGED_ACCOUNTS)} exists. {_INSTEAD}"
    )


def _lacking_capabilities() -> list[str]:
    """Return the names of required capabilities that are not in effect; empty without /proc."""
    try:
        with open("/proc/self/status") as status:
            mask = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    except (OSError, StopIteration):
        return []
    return [name for name, bit in _NEEDED_CAPABILITIES.items() if not mask >> bit & 1]


def give(path: Path, user: str) -> None:
    """Make `user` the owner of this file or folder.

    Raises:
        ServerDidNotStart: the file system or the user namespace does not allow it.
    """
    account = pwd.getpwnam(user)
    try:
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    except OSError as error:
        raise ServerDidNotStart(
            f"Postgres does not run as root, and {path} cannot be given to the user {user}: "
            f"{error.strerror}. {_INSTEAD}"
        ) from error


def give_all(folder: Path, user: str) -> None:
    """Give a folder and everything in it to the user."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            give(Path(parent, name), user)
    give(folder, user)
