"""The hosts of a URL that lists several servers of one cluster."""

from collections.abc import Mapping
from typing import Any

import psycopg

_LISTS = ("host", "hostaddr", "port")


def without(args: Mapping[str, Any], info: psycopg.ConnectionInfo) -> dict[str, Any] | None:
    """Return the arguments of a connection without the host that it leads to; None if there is no
    other host.
    """
    lists = {name: str(args[name]).split(",") for name in _LISTS if args.get(name)}
    length = max(map(len, lists.values()), default=0)
    # One port is that of all hosts.
    columns = [of_all * length if len(of_all) == 1 else of_all for of_all in lists.values()]
    servers = [dict(zip(lists, server, strict=True)) for server in zip(*columns, strict=True)]
    others = [server for server in servers if not _is_used(server, info)]
    if not others or len(others) == len(servers):
        return None
    return {**args, **{name: ",".join(server[name] for server in others) for name in lists}}


def _is_used(server: Mapping[str, str], info: psycopg.ConnectionInfo) -> bool:
    # As it was given: the connection may write an address in another way.
    address = info.get_parameters().get("hostaddr")
    return (
        server.get("host", info.host) == info.host
        and server.get("hostaddr", address) == address
        and int(server.get("port") or 5432) == info.port
    )
