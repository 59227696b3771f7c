"""The user as whom programs of organizations run: MCP servers over stdio."""

import os
import pwd
from dataclasses import dataclass

from arkloop.shared.config import InvalidSettings

#: As whom, where workers run as root and no setting names a user.
UNPRIVILEGED = "nobody"


@dataclass(frozen=True, slots=True)
class ProgramUser:
    """A user of this machine, as the table of users has it."""

    name: str
    uid: int
    gid: int
    home: str


def of(name: str | None) -> ProgramUser | None:
    """Return the user that `ARKLOOP_MCP_STDIO_USER` names, else, for root, an unprivileged one.

    None: programs run as the user of this process, who is the one that is named, or cannot
    become another one and should not.

    Raises:
        InvalidSettings: there is no such user, or this process cannot become it.
    """
    own = os.geteuid()
    if name is None and own != 0:
        return None
    try:
        found = pwd.getpwnam(name or UNPRIVILEGED)
    except KeyError:
        raise InvalidSettings(
            f"ARKLOOP_MCP_STDIO_USER: there is no user {name or UNPRIVILEGED!r} on this machine"
        ) from None
    if found.pw_uid == own:
        return None
    if own != 0:
        raise InvalidSettings(
            f"ARKLOOP_MCP_STDIO_USER: only root can start programs as {name!r}; this process"
            f" has the user id {own}"
        )
    return ProgramUser(found.pw_name, found.pw_uid, found.pw_gid, found.pw_dir)
