"""Hosts of Postgres that one URL lists: what each is, and whether one alone accepts writes."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import psycopg

from arkloop.cli.doctor.findings import Finding, fail
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


@dataclass(frozen=True, slots=True)
class Host:
    """A host of the list; with an `error` it executes no statement, and nothing else is known."""

    place: str
    error: psycopg.Error | None = None
    is_standby: bool = False
    is_at_target: bool = False  # of its recovery, at which it waits
    is_read_only: bool = False
    started: str = ""
    timeline: int = 0  # of a primary; each promotion begins one with a higher number; 0: hidden

    @property
    def accepts_writes(self) -> bool:
        return self.error is None and not self.is_read_only


def look_at(url: str) -> list[Host]:
    """Look at each host of a URL, with a connection of its own."""
    return [_look_at(args) for args in _each(url)]


def are_several(url: str) -> bool:
    """Return whether a URL lists more than one host."""
    return len(_each(url)) > 1


def of_hosts(name: str, variable: str, url: str) -> Iterator[Finding]:
    """Find primaries beside each other: a connection leads to the first that responds."""
    if not are_several(url):
        return
    primaries = {host.started: host for host in look_at(url) if host.accepts_writes}
    if len(primaries) < 2:
        return
    *older, newest = sorted(primaries.values(), key=lambda host: host.timeline)
    shown = " and ".join(f"{host.place} (timeline {host.timeline})" for host in (*older, newest))
    superseded = [host.place for host in older if host.timeline < newest.timeline]
    advice = "Stop all but the primary, and rebuild them as standbys."
    if len(superseded) == len(older):
        advice = (
            f"Stop {' and '.join(superseded)}, which a promotion has superseded, and rebuild as a"
            " standby: what is written there is lost."
        )
    yield fail(f"{name} hosts", f"{variable} lists several that accept writes: {shown}", advice)


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
            host = Host(place, None, *(found or ()))
            return replace(host, timeline=_timeline(connection)) if host.accepts_writes else host
    except psycopg.Error as error:
        return Host(place, error)


def _timeline(connection: BoundedConnection) -> int:
    """Return the timeline of a primary, 0 where the server or the role's rights hide its log."""
    with suppress(psycopg.Error):
        for (timeline,) in connection.execute(_TIMELINE):
            return int(timeline)
    return 0
