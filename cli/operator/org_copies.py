"""Copies of an org in another installation: all its rows, in one transaction of the target.

Rows go from one server to the other by COPY, some thousand in each statement, and are never more
than a piece in this process. Before the target commits, number and sum of each table's rows are
compared. A process that is killed at any moment leaves all of the copy or nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import islice
from types import MappingProxyType
from typing import Any
from uuid import UUID

import psycopg

from arkloop.cli.operator import org_returns
from arkloop.cli.operator.org_returns import Entry
from arkloop.cli.operator.org_rows import OrgTable, tables
from arkloop.shared.billing.credits import CREDITS_PER_USD
from arkloop.shared.billing.usage_sums import ADD_DAY, ADD_INTERVALS, start_of
from arkloop.shared.storage.postgres import FIRST_WITH_TRANSACTION_TIMEOUT, connection_args
from arkloop.shared.storage.schema import LOST_CLIENTS
from arkloop.shared.storage.tables import metadata

Connection = psycopg.Connection[Any]

#: Rows of one COPY into the target: its triggers are queued in memory until the statement ends.
ROWS_AT_ONCE = 20_000

# Both servers write the same row as the same text. No limits: the largest org takes as long as it
# takes. A lock of a table is waited for, but not behind a migration.
_SETTINGS = {
    "statement_timeout": "0",
    "lock_timeout": "30s",
    "idle_in_transaction_session_timeout": "0",
    "client_encoding": "UTF8",
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "arkloop.orgs": "*",
}
_SET = "SELECT set_config(name, value, true) FROM unnest(%s::text[], %s::text[]) AS s (name, value)"

# What a user has in the target already stays there, such as a newer password.
_SUM_OF_USER = 't.id, lower(t."login"), lower(t."email")'
_MOVED_USERS = "users AS t WHERE t.id IN (SELECT id FROM moved_users)"

_DAYS_TO_ADD = """
SELECT DISTINCT (ended_at AT TIME ZONE 'UTC')::date AS day FROM run_usage
WHERE org_id = %(org_id)s
    AND ended_at >= coalesce(%(since)s::timestamp AT TIME ZONE 'UTC', '-infinity')
    AND ended_at < %(until)s::timestamp AT TIME ZONE 'UTC'
"""


#: Tables whose rows outlive the erasure of an org, with the reason.
STAY: Mapping[str, str] = {
    "audit_entries": "append-only",
    "audit_heads": "append-only",
    "erasures": "what was erased is recorded for good",
    "ledger_entries": "append-only",
    "users": "they can be in other orgs",
}
#: Of these the target may have other rows, too.
_MAY_HAVE_MORE = ("erasures", "ledger_entries")


class Differs(Exception):
    """The end of a copy that is not what was read; nothing of it is stored."""


@contextmanager
def opened(url: str) -> Iterator[Connection]:
    """Connect to a database, whose URL is in SQLAlchemy's form, without limits of time."""
    arguments = {**connection_args(url), "application_name": "arkloop-cli"}
    with psycopg.connect(**arguments, prepare_threshold=None, autocommit=True) as connection:
        yield connection


def asked(
    connection: Connection, query: str, parameters: Sequence[Any] | Mapping[str, Any] = ()
) -> tuple[Any, ...] | None:
    """Return the first row, of all orgs: without the setting, row-level security shows none."""
    with changing(connection):
        return connection.execute(query, parameters).fetchone()


@contextmanager
def reading(source: Connection) -> Iterator[None]:
    """Open a transaction that sees the database as it is at its beginning."""
    with source.transaction():
        source.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        _set(source)
        yield


@contextmanager
def writing(target: Connection, org_id: UUID) -> Iterator[None]:
    """Open the transaction of a copy of this org; another one of the same org waits for it."""
    with target.transaction():
        _set(target, LOST_CLIENTS)
        target.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"copy {org_id}"])
        yield


@contextmanager
def changing(connection: Connection) -> Iterator[None]:
    """Open a transaction that sees the rows of all orgs."""
    with connection.transaction():
        _set(connection, LOST_CLIENTS)
        yield


def _set(connection: Connection, more: Mapping[str, str] = MappingProxyType({})) -> None:
    """Make the settings of a transaction; `more` has those of one that writes.

    Its locks are released where this machine is lost. The source would take this one for lost while
    it waits for the target and reads nothing.
    """
    settings = {**_SETTINGS, **more}
    if connection.info.server_version >= FIRST_WITH_TRANSACTION_TIMEOUT:
        settings["transaction_timeout"] = "0"
    connection.execute(_SET, [[*settings], [*settings.values()]])


def copy(source: Connection, target: Connection, org_id: UUID) -> Iterator[tuple[str, int]]:
    """Copy table by table, in the transactions of both, and yield name and number of rows of each.

    Raises:
        Differs: the target has not what was read.
        psycopg.errors.UniqueViolation: the target has a row of this id or name.
    """
    taken: list[Entry] = []
    for table in tables():
        if table.name in STAY:
            taken += _add_rows(source, target, table, org_id)
        else:
            _copy_rows(source, target, table.select(org_id), table.name, table.quoted)
        yield table.name, _compared(source, target, table, org_id)
    # Of an org that comes back: what collects events of deleted runs would take these, too.
    target.execute(
        "DELETE FROM forgotten_events WHERE run_id IN (SELECT id FROM runs WHERE org_id = %s)",
        [org_id],
    )
    org_returns.append_again(target, org_id, taken)
    org_returns.enter_contra(target, org_id)
    _copy_sums(source, target, org_id)


def _copy_rows(source: Connection, target: Connection, query: str, name: str, columns: str) -> None:
    write = f"COPY {name} ({columns}) FROM STDIN"
    store = None
    if _is_walled(target, name):
        target.execute(f"CREATE TEMPORARY TABLE staged_{name} (LIKE {name}) ON COMMIT DROP")
        write = f"COPY staged_{name} ({columns}) FROM STDIN"
        store = (
            f"INSERT INTO {name} ({columns}) SELECT {columns} FROM staged_{name};"
            f" TRUNCATE staged_{name}"
        )
    with source.cursor().copy(f"COPY ({query}) TO STDOUT") as found:
        rows = iter(found)
        for first in rows:
            with target.cursor().copy(write) as stored:
                stored.write(first)
                for row in islice(rows, ROWS_AT_ONCE - 1):
                    stored.write(row)
            if store is not None:
                target.execute(store)


def _is_walled(target: Connection, name: str) -> bool:
    """Return whether row-level security concerns this role: then Postgres refuses to COPY."""
    query = "SELECT row_security_active(to_regclass(%s)::oid)"
    row = target.execute(query, [name]).fetchone()
    return row is not None and bool(row[0])


def _add_rows(
    source: Connection, target: Connection, table: OrgTable, org_id: UUID
) -> Sequence[Entry]:
    """Add the rows that the target does not have: some are there of an org that comes back, and a
    user can be in several orgs.

    Returns entries of the audit log that are to be appended again.
    """
    name = f"moved_{table.name}"
    target.execute(f"CREATE TEMPORARY TABLE {name} (LIKE {table.name}) ON COMMIT DROP")
    _copy_rows(source, target, table.select(org_id), name, table.quoted)
    taken: Sequence[Entry] = ()
    if table.name == "audit_entries":
        taken = org_returns.remove_diverged_entries(target, org_id)
    elif table.name == "ledger_entries":
        org_returns.detach_charges(target, org_id)
    key = ", ".join(column.name for column in metadata.tables[table.name].primary_key)
    target.execute(
        f"INSERT INTO {table.name} ({table.quoted}) SELECT {table.quoted} FROM {name}"
        f" ON CONFLICT ({key}) DO NOTHING"
    )
    if table.name == "audit_heads":
        org_returns.set_head(target, org_id)
    elif table.name == "users":
        org_returns.restore_users(target, table.columns)
    return taken


def _compared(source: Connection, target: Connection, table: OrgTable, org_id: UUID) -> int:
    """Return the number of rows. Raises: Differs."""
    query = there = table.select(org_id)
    if table.name == "users":
        query = table.select(org_id, _SUM_OF_USER)
        # Nothing in the target refers to them yet.
        there = f"SELECT {_SUM_OF_USER} FROM {_MOVED_USERS}"
    elif table.name in _MAY_HAVE_MORE:
        there = f"{query} AND t.id IN (SELECT id FROM moved_{table.name})"
    found, stored = _sum(source, query), _sum(target, there)
    if found != stored and table.name == "users":
        raise Differs(f"users with another login or address in the target: {_others(target)}")
    if found != stored:
        raise Differs(
            f"{table.name}: {found[0]} rows were read, and {stored[0]} that are not all the same"
            " are in the target"
        )
    return found[0]


def _others(target: Connection) -> str:
    """Return logins and ids of the users who are there, and not as they were read."""
    rows = target.execute(
        "SELECT m.login || ' (' || m.id || ')' FROM moved_users m JOIN users u USING (id)"
        " WHERE (lower(m.login), lower(m.email)) <> (lower(u.login), lower(u.email))"
        " ORDER BY m.id LIMIT 10"
    )
    return ", ".join(name for (name,) in rows)


def _sum(connection: Connection, query: str) -> tuple[int, int]:
    """Return how many rows there are, and a sum of their texts that no order changes."""
    row = connection.execute(
        "SELECT count(*), coalesce(sum(('x' || left(md5(r::text), 16))::bit(64)::bigint), 0)"
        f" FROM ({query}) AS r"
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def _copy_sums(source: Connection, target: Connection, org_id: UUID) -> None:
    """Copy the sums of days that both have summed up, and add those that only the target has.

    It comes last: until the end of the transaction the target sums up nothing else.
    """
    read = "SELECT day, interval_at FROM usage_days_until"
    since, _ = source.execute(read).fetchone() or (None, None)
    until, interval = target.execute(f"{read} FOR UPDATE").fetchone() or (None, None)
    if until is None:
        return
    columns = ", ".join(column.name for column in metadata.tables["usage_days"].columns)
    query = f"SELECT {columns} FROM usage_days WHERE org_id = '{org_id}' AND day < '{until}'"
    _copy_rows(source, target, query, "usage_days", columns)
    added = {"org_id": org_id, "since": since, "until": until}
    for (day,) in target.execute(_DAYS_TO_ADD, added).fetchall():
        _add_intervals(target, org_id, start_of(day), start_of(day + timedelta(days=1)))
        target.execute(ADD_DAY, {"org_id": org_id, "day": day})
    # The sweep would delete them at once, within the time of its statements.
    target.execute("DELETE FROM usage_intervals WHERE org_id = %s", [org_id])
    if interval is not None:
        _add_intervals(target, org_id, start_of(until), interval)


def _add_intervals(target: Connection, org_id: UUID, since: datetime, until: datetime) -> None:
    values = {"org_id": org_id, "since": since, "until": until, "credits_per_usd": CREDITS_PER_USD}
    target.execute(ADD_INTERVALS, values)
