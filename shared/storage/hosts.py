"""The hosts of a URL that lists several servers of one cluster."""

import errno
import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import psycopg

_LISTS = ("host", "hostaddr", "port")
#: What libpq reports of a server that it connects nobody to, for `target_session_attrs`.
_READ_ONLY = ("session is read-only", "server is in hot standby mode")
#: What it reports of one that is gone. Silence has another form, in which no server is named.
_GONE = tuple(
    os.strerror(code)
    for code in (
        *(errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH),
        *(errno.EHOSTDOWN, errno.ENOENT),
    )
)
_FAILURE = re.compile(r"connection to server [^\n]*? failed: ([^\n]*)")
_OF_SOCKETS = ("/", "@")
# Of each host, where psycopg has tried several.
_ATTEMPT = "- host: "


def without(args: Mapping[str, Any], info: psycopg.ConnectionInfo) -> dict[str, Any] | None:
    """Return the arguments of a connection without the server that it leads to; None if there is no
    other one. A host of several addresses, as a name may have, is left with the others.
    """
    lists = {name: str(args[name]).split(",") for name in _LISTS if args.get(name)}
    length = max(map(len, lists.values()), default=0)
    # One port is that of all hosts.
    columns = [of_all * length if len(of_all) == 1 else of_all for of_all in lists.values()]
    servers = [dict(zip(lists, server, strict=True)) for server in zip(*columns, strict=True)]
    others: list[dict[str, str]] = []
    is_listed = False
    for server in servers:
        if _is_used(server, info):
            is_listed = True
            others += _at_other_addresses(server, info)
        else:
            others.append(server)
    if not others or not is_listed:
        return None
    # An address that is empty is looked up.
    names = [name for name in _LISTS if any(name in server for server in others)]
    return {**args, **{name: ",".join(server.get(name, "") for server in others) for name in names}}


def _at_other_addresses(
    server: Mapping[str, str], info: psycopg.ConnectionInfo
) -> list[dict[str, str]]:
    """Return the server at each address that its name has, except for the one in use."""
    used = info.get_parameters().get("hostaddr")
    if not used or server.get("hostaddr") or server.get("host", used) == used:
        return []  # no name was looked up
    others = [address for address in addresses_of(server["host"]) if address != used]
    return [{**server, "hostaddr": address} for address in others]


def addresses_of(host: str) -> list[str]:
    """Look up the addresses of a host; none are those of a socket, or of a name without any."""
    if not host.startswith(_OF_SOCKETS):
        with suppress(OSError, UnicodeError):  # the second for what is no name at all
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            return [*dict.fromkeys(str(place[0]) for *_, place in found)]
    return []


def _is_used(server: Mapping[str, str], info: psycopg.ConnectionInfo) -> bool:
    # As it was given: the connection may write an address in another way.
    address = info.get_parameters().get("hostaddr")
    return (
        server.get("host", info.host) == info.host
        and (server.get("hostaddr") or address) == address
        and int(server.get("port") or 5432) == info.port
    )


def are_read_only(error: str) -> bool:
    """Return whether an error of connecting means that every reachable host refuses to write.

    A primary that has no connection left, starts up or rejects the login is reachable as well: a
    standby beside it is not the reason. A host whose name is not resolved is not in the error at
    all, and counts as gone.
    """
    failures = _FAILURE.findall(error)
    return any(one.startswith(_READ_ONLY) for one in failures) and all(
        one.startswith((*_READ_ONLY, *_GONE)) for one in failures
    )


def failure(error: str) -> str:
    """Return the first line of an error of connecting, or the one of each host that was tried:
    psycopg leaves out those whose names are not resolved, unless that is so for all.
    """
    lines = error.splitlines() or [""]
    attempts = [line.removeprefix("- ") for line in lines if line.startswith(_ATTEMPT)]
    return "; ".join(attempts) or lines[0]
