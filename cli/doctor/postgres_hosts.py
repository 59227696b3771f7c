"""Hosts of Postgres that one URL leads to: what each is, and whether one alone accepts writes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import psycopg

from arkloop.cli.doctor.findings import Finding, fail
from arkloop.cli.operator.database import server_of
from arkloop.shared.runs.live_workers import SILENT_HEARTBEATS
from arkloop.shared.storage import hosts
from arkloop.shared.storage.postgres import BoundedConnection, connection_args

#: Seconds. A server that works answers in a thousandth of it.
ANSWER_SECONDS = 5.0
#: Whether it is a standby, and whether it has stopped at the target of its recovery: that is not
#: where somebody has paused a standby, and the second function works in recovery alone. The time
#: of its start tells a server from others: several addresses, such as poolers', may lead to it.
_STATE = """
SELECT pg_is_in_recovery(), CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() END
    AND EXISTS (
        SELECT FROM pg_settings
        WHERE name ~ '^recovery_target(_time|_xid|_lsn|_name)?$' AND setting <> ''
    ),
    current_setting('transaction_read_only') = 'on',
    extract(epoch FROM pg_postmaster_start_time())::text
"""
_TIMELINE = "SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int"
_HEARTBEAT = "SELECT extract(epoch FROM clock_timestamp() - max(seen_at))::float8 FROM workers"
#: For the rows behind row-level security, and for a table that somebody has locked.
_LIMITS = "SELECT set_config('arkloop.orgs', '*', true), set_config('lock_timeout', '1000', true)"


@dataclass(frozen=True, slots=True)
class Host:
    """A host of the list, or one address of its name; with an `error` it executes no statement, and
    nothing else is known.
    """

    place: str
    error: psycopg.Error | None = None
    is_standby: bool = False
    is_at_target: bool = False  # of its recovery, at which it waits
    is_read_only: bool = False
    started: str = ""
    timeline: int = 0  # of a primary; each promotion begins one with a higher number; 0: hidden
    heartbeat_age: float | None = None  # in a primary: seconds since the last one of any worker

    @property
    def accepts_writes(self) -> bool:
        return self.error is None and not self.is_read_only

    @property
    def shown(self) -> str:
        """The place, with what tells primaries from each other."""
        marks = [f"timeline {self.timeline}"] if self.timeline else []
        if self.heartbeat_age is not None:
            marks.append(f"last heartbeat of a worker {max(self.heartbeat_age, 0):,.0f} s ago")
        return f"{self.place} ({', '.join(marks)})" if marks else self.place


def look_at(url: str) -> list[Host]:
    """Look at each host of a URL, with a connection of its own."""
    return [_look_at(args) for args in _each(url)]


def are_several(url: str) -> bool:
    """Return whether a URL lists more than one host, or a name with the addresses of several."""
    return len(_each(url)) > 1


def of_hosts(name: str, variable: str, url: str, heartbeat_seconds: float) -> Iterator[Finding]:
    """Find primaries beside each other: a connection leads to the first that responds."""
    if not are_several(url):
        return
    by_start = {host.started: host for host in look_at(url) if host.accepts_writes}
    if len(by_start) < 2:
        return
    primaries = sorted(by_start.values(), key=lambda host: host.timeline)
    yield fail(
        f"{name} hosts",
        f"{variable} leads to several that accept writes: "
        + " and ".join(host.shown for host in primaries),
        f"{_in_use(primaries, heartbeat_seconds * SILENT_HEARTBEATS)}Each may have what the others"
        " lack: decide whose data to keep before you stop one. Then stop the others, and rebuild"
        " them as standbys: what only they have is lost.",
    )


def _in_use(primaries: Sequence[Host], silence: float) -> str:
    """Say where workers write, if that is known: a later timeline shows what was promoted, which
    is not always what the processes have found.
    """
    used = [
        host.place
        for host in primaries
        if host.heartbeat_age is not None and host.heartbeat_age <= silence
    ]
    if len(used) > 1:
        return "Workers write to several of them, or did so until a promotion seconds ago. "
    return f"Workers write to {used[0]} now. " if used else ""


def _each(url: str) -> list[dict[str, Any]]:
    """Return the parameters of each host; libpq refuses lists of different lengths."""
    args = connection_args(url)
    names, given, ports = (
        str(args.get(name) or "").split(",") for name in ("host", "hostaddr", "port")
    )
    names = names if args.get("host") else [""] * len(given)
    given = given if args.get("hostaddr") else [""] * len(names)
    ports = ports * len(names) if len(ports) == 1 else ports
    if not len(names) == len(ports) == len(given):
        return [args]
    each = [
        {**args, "host": name or None, "port": port or None, "hostaddr": address or None}
        for name, port, listed in zip(names, ports, given, strict=True)
        for address in ([listed] if listed or not name else _addresses(name))
    ]
    return each if len(each) > 1 else [args]


def _addresses(name: str) -> list[str]:
    """Return the addresses of a name that leads to several servers, else one that is empty."""
    found = hosts.addresses_of(name)
    # One server can have an address of each family, as `localhost` does.
    of_families = Counter(":" in address for address in found)
    return found if max(of_families.values(), default=0) > 1 else [""]


def _look_at(args: dict[str, Any]) -> Host:
    place = server_of(args)
    if args.get("host") and args.get("hostaddr"):
        place += f" at {args['hostaddr']}"  # others may have the same name
    try:
        with BoundedConnection.connect(
            **{**args, "target_session_attrs": "any"}, autocommit=True
        ) as connection:
            connection.answer_seconds = ANSWER_SECONDS
            connection.prepare_threshold = None  # a pooler may be in between
            found = connection.execute(_STATE).fetchone()
            host = Host(place, None, *(found or ()))
            if not host.accepts_writes:
                return host
            timeline, age = _timeline(connection), _heartbeat_age(connection)
            return replace(host, timeline=timeline, heartbeat_age=age)
    except psycopg.Error as error:
        return Host(place, error)


def _timeline(connection: BoundedConnection) -> int:
    """Return the timeline of a primary, 0 where the server or the role's rights hide its log."""
    with suppress(psycopg.Error):
        for (timeline,) in connection.execute(_TIMELINE):
            return int(timeline)
    return 0


def _heartbeat_age(connection: BoundedConnection) -> float | None:
    """Return the seconds since a worker's last heartbeat; None where there is none to be read."""
    with suppress(psycopg.Error), connection.transaction():
        connection.execute(_LIMITS)
        for (age,) in connection.execute(_HEARTBEAT):
            return None if age is None else float(age)
    return None
