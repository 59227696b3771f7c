"""Hosts of Postgres that one URL lists: what each of them is."""

from dataclasses import dataclass
from typing import Any

import psycopg

from arkloop.shared.storage.postgres import BoundedConnection, connection_args

#: Seconds. A server that works answers in a thousandth of it.
ANSWER_SECONDS = 5.0
#: Whether it is a standby, and whether it has stopped at the target of its recovery: that is not
#: where somebody has paused a standby, and the second function works in recovery alone.
_STATE = """
SELECT pg_is_in_recovery(), CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() END
    AND EXISTS (
        SELECT FROM pg_settings
        WHERE name ~ '^recovery_target(_time|_xid|_lsn|_name)?$' AND setting <> ''
    ),
    current_setting('transaction_read_only') = 'on'
"""


@dataclass(frozen=True, slots=True)
class Host:
    """A host of the list; with an `error` it executes no statement, and nothing else is known."""

    place: str
    error: psycopg.Error | None = None
    is_standby: bool = False
    is_at_target: bool = False  # of its recovery, at which it waits
    is_read_only: bool = False

    @property
    def accepts_writes(self) -> bool:
        return self.error is None and not self.is_read_only


def look_at(url: str) -> list[Host]:
    """Look at each host of a URL, with a connection of its own."""
    return [_look_at(args) for args in _each(url)]


def are_several(url: str) -> bool:
    """Return whether a URL lists more than one host."""
    return len(_each(url)) > 1


def _each(url: str) -> list[dict[str, Any]]:
    """Return the parameters of each host; libpq refuses lists of different lengths."""
    args = connection_args(url)
    hosts, ports = (str(args.get(name) or "").split(",") for name in ("host", "port"))
    addresses = str(args["hostaddr"]).split(",") if args.get("hostaddr") else [None] * len(hosts)
    if len(ports) == 1:
        ports *= len(hosts)
    if not len(hosts) == len(ports) == len(addresses) > 1:
        return [args]
    return [
        {**args, "host": host, "port": port or None, "hostaddr": address}
        for host, port, address in zip(hosts, ports, addresses, strict=True)
    ]


def _look_at(args: dict[str, Any]) -> Host:
    place = f"{args.get('host') or args.get('hostaddr') or 'localhost'}:{args.get('port') or 5432}"
    try:
        with BoundedConnection.connect(
            **{**args, "target_session_attrs": "any"}, autocommit=True
        ) as connection:
            connection.answer_seconds = ANSWER_SECONDS
            connection.prepare_threshold = None  # a pooler may be in between
            found = connection.execute(_STATE).fetchone()
    except psycopg.Error as error:
        return Host(place, error)
    return Host(place, None, *(found or ()))
