"""Postgres: reachable, writable, recent enough, migrated; poolers, roles and row-level security."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from psycopg.errors import LockNotAvailable, QueryCanceled
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from arkloop.cli.doctor import clocks
from arkloop.cli.doctor.findings import Finding, fail, ok, warn
from arkloop.cli.doctor.postgres_failures import SLOW, first_line, unreachable
from arkloop.cli.doctor.postgres_hosts import ANSWER_SECONDS
from arkloop.cli.operator.database import IDENTITY, place
from arkloop.shared.config import Settings, variable_of
from arkloop.shared.storage import row_security, schema, service_role
from arkloop.shared.storage.postgres import BoundedConnection, connection_args, leads_to_pooler
from arkloop.shared.storage.server_checks import OLDEST_POSTGRES

_LIMITS = (
    "SELECT set_config('statement_timeout', '4000', true),"
    " set_config('lock_timeout', '1000', true), set_config('arkloop.orgs', '*', true),"
    " set_config('datestyle', 'ISO', true),"  # psycopg reads no other
    " set_config('standard_conforming_strings', 'on', true)"  # our patterns have backslashes
)


def engine_of(url: str) -> Engine:
    """Return an engine with one connection, which is opened when it is first used.

    Statements end within `ANSWER_SECONDS`, also on a server that is frozen.
    """

    def connect() -> BoundedConnection:
        connection = BoundedConnection.connect(**connection_args(url), autocommit=True)
        connection.answer_seconds = ANSWER_SECONDS
        connection.prepare_threshold = None  # a pooler may be in between
        return connection

    return create_engine("postgresql+psycopg://", creator=connect, poolclass=StaticPool)


@contextmanager
def transaction(engine: Engine, mode: str = "READ ONLY") -> Iterator[Connection]:
    """Begin a transaction with limits that sees the rows of all orgs; it is rolled back."""
    with engine.connect() as sql:
        sql.exec_driver_sql(f"BEGIN {mode}")
        try:
            sql.exec_driver_sql(_LIMITS)
            yield sql
        finally:
            sql.exec_driver_sql("ROLLBACK")


def of_server(name: str, variable: str, url: str, engine: Engine) -> list[Finding]:
    """Look at one server; one finding that fails means that no statement can be executed."""
    began = time.monotonic()
    try:
        with transaction(engine) as sql:
            seconds = time.monotonic() - began
            return [
                *_version(name, variable, url, sql, seconds),
                *_durability(name, variable, sql),
                *_connections(name, sql),
                clocks.of_server(name, lambda: float(sql.scalar(_CLOCK) or 0)),
            ]
    except DBAPIError as error:
        return [unreachable(name, variable, url, error)]


_CLOCK = text("SELECT extract(epoch FROM clock_timestamp())")


def examined(
    name: str,
    check: Callable[[Settings, Connection], Iterator[Finding]],
    settings: Settings,
    engine: Engine,
) -> list[Finding]:
    """Carry out a check in a transaction of its own.

    Its last finding has `name` if a statement waits for a lock, or takes too long.

    Raises:
        DBAPIError: any other error of Postgres.
    """
    findings = []
    try:
        with transaction(engine) as sql:
            for finding in check(settings, sql):
                findings.append(finding)
    except DBAPIError as error:
        if not isinstance(error.orig, LockNotAvailable | QueryCanceled):
            raise
        findings.append(given_up(name, engine, error))
    return findings


#: The locks that a read waits for.
_AGAINST_READS = ("AccessExclusiveLock",)
# Who has such a lock, or is before it in the queue for it. What waits itself comes last.
# Transactions of other roles show their age only to pg_read_all_stats.
_OLDEST_LOCKER = text(
    """
    WITH exclusive AS (
        SELECT pid FROM pg_locks
        WHERE locktype = 'relation' AND mode = ANY(:modes) AND relation IN (
            SELECT oid FROM pg_class WHERE relnamespace = current_schema()::regnamespace
        ) AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    )
    SELECT pid, extract(epoch FROM now() - xact_start)::int AS seconds
    FROM pg_stat_activity WHERE pid IN (
        SELECT pid FROM exclusive UNION SELECT unnest(pg_blocking_pids(pid)) FROM exclusive
    )
    ORDER BY pid IN (SELECT pid FROM pg_locks WHERE NOT granted), xact_start LIMIT 1
    """
)


def given_up(
    name: str, engine: Engine, error: DBAPIError, modes: Sequence[str] = _AGAINST_READS
) -> Finding:
    """Explain why a check was given up; the transaction that locks its table, in one of these
    modes, is named.
    """
    advice = SLOW
    if isinstance(error.orig, LockNotAvailable):
        with transaction(engine) as sql:
            locker = sql.execute(_OLDEST_LOCKER, {"modes": list(modes)}).one_or_none()
        if locker is not None:
            age = ""
            if locker.seconds is not None:
                age = f", in a transaction that began {locker.seconds:,} s ago"
            advice = (
                f"Process {locker.pid} of Postgres locks a table, or is about to{age}: let it end,"
                f" or use pg_terminate_backend({locker.pid})."
            )
    return fail(name, f"could not be looked at: {first_line(error)}", advice)


def _version(
    name: str, variable: str, url: str, sql: Connection, seconds: float
) -> Iterator[Finding]:
    number = int(sql.scalar(text("SELECT current_setting('server_version_num')")) or 0)
    shown = str(sql.scalar(text("SHOW server_version"))).partition(" ")[0]
    encoding = sql.scalar(text("SHOW server_encoding"))
    if number < OLDEST_POSTGRES:
        advice = "Upgrade it to Postgres 13 or later."
        yield fail(name, f"Postgres {shown} at {place(url)} is too old", advice)
    else:
        yield ok(name, f"Postgres {shown} at {place(url)}, {seconds * 1000:.1f} ms")
    if encoding != "UTF8":
        yield fail(
            f"{name} encoding",
            f"{encoding}, which cannot store every text",
            f"Create another database with ENCODING 'UTF8' TEMPLATE template0, and correct"
            f" {variable}.",
        )


#: What changes a setting, by its source in pg_settings: each of these comes before the server's.
_SET_BY = {
    "command line": "Remove {0} from the command line of Postgres, and restart it.",
    "global": "ALTER ROLE ALL RESET {0}, then restart processes.",
    "database": "ALTER DATABASE {2} RESET {0}, then restart processes.",
    "user": "ALTER ROLE {1} RESET {0}, then restart processes.",
    "database user": "ALTER ROLE {1} IN DATABASE {2} RESET {0}, then restart processes.",
    "client": "Remove {0} from the options of {3}, or from PGOPTIONS, and restart processes.",
}
_SET_BY_SERVER = "ALTER SYSTEM SET {0} = on, then SELECT pg_reload_conf()."
_IS_OFF = text(
    "SELECT source, quote_ident(session_user), quote_ident(current_database()) FROM pg_settings"
    " WHERE name = :name AND setting = 'off'"
)


def _durability(name: str, variable: str, sql: Connection) -> Iterator[Finding]:
    for setting, loss in (
        ("fsync", "a crash of its machine can destroy the database"),
        ("full_page_writes", "a crash of its machine can destroy the database"),
        ("synchronous_commit", "a crash loses events that clients have already seen"),
        ("autovacuum", "tables grow, and plans get worse"),
    ):
        if off := sql.execute(_IS_OFF, {"name": setting}).one_or_none():
            source, role, database = off
            advice = _SET_BY.get(source, _SET_BY_SERVER).format(setting, role, database, variable)
            yield warn(f"{name} {setting}", f"off: {loss}", advice)


# Sessions of other roles show their kind only to pg_read_all_stats, but their database and role.
_IN_USE = text(
    """
    SELECT (
        SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'
            OR backend_type IS NULL AND usesysid IS NOT NULL AND datid IS NOT NULL
    ), current_setting('max_connections')::int
    """
)


def _connections(name: str, sql: Connection) -> Iterator[Finding]:
    used, most = sql.execute(_IN_USE).one()
    shown = f"{used} of {most} in use"
    if used > 0.85 * most:
        yield warn(
            f"{name} connections",
            shown,
            "Raise max_connections, lower ARKLOOP_DATABASE_POOL_SIZE, or put a pooler in between.",
        )
    else:
        yield ok(f"{name} connections", shown)


#: What the search path names, and what has tables that the role cannot see.
_SCHEMAS_OUT_OF_REACH = text(
    "SELECT nspname FROM pg_namespace WHERE nspname = ANY(regexp_split_to_array(replace("
    "current_setting('search_path'), '\"', ''), ', *')) AND NOT has_schema_privilege(oid, 'USAGE')"
    " ORDER BY 1"
)


#: NULL where the table is not there.
_MAY_READ_VERSION = text(
    "SELECT has_table_privilege(to_regclass('alembic_version')::oid, 'SELECT')"
)


def of_schema(_settings: Settings, sql: Connection) -> Iterator[Finding]:
    """Compare the schema with this code, and look at role, privileges and row-level security."""
    if sql.scalar(_MAY_READ_VERSION) is False:
        yield fail(
            "privileges",
            f"the role {sql.scalar(text('SELECT current_user'))} may not read the tables",
            "Run `arkloop migrate` with ARKLOOP_OWNER_DATABASE_URL: it grants them.",
        )
        return
    version = schema.current_version(sql)
    if version is None and (hidden := sql.scalars(_SCHEMAS_OUT_OF_REACH).all()):
        yield fail(
            "privileges",
            f"the role {sql.scalar(text('SELECT current_user'))} may not use the schema"
            f" {' or '.join(hidden)}",
            "Run `arkloop migrate` with ARKLOOP_OWNER_DATABASE_URL: it grants USAGE.",
        )
        return
    if (problem := schema.shortfall(version)) is not None:
        advice = "Run the Procfile's `release`, which is `arkloop migrate`."
        if version is not None and schema.is_foreign(version):
            variable = variable_of("ARKLOOP_DATABASE_URL")
            advice = f"Create one, point {variable} to it, and run `arkloop migrate`."
        yield fail("schema", problem, advice)
        return
    newer = version != schema.needed_version()
    yield ok("schema", f"{version}{', newer than this code, which can use it' if newer else ''}")
    yield from _role(sql)


def _role(sql: Connection) -> Iterator[Finding]:
    # Not the user of the URL, which a pooler may have for another role.
    name = str(sql.scalar(text("SELECT current_user")))
    lacking = service_role.lacking(sql)
    if lacking:
        yield fail(
            "privileges",
            f"the role {name} may not read and write {', '.join(lacking[:5])}"
            f"{' and others' if len(lacking) > 5 else ''}",
            "Run `arkloop migrate` with ARKLOOP_OWNER_DATABASE_URL: it grants them.",
        )
    if barred := service_role.barred(sql, service_role.OWN_FUNCTIONS):
        yield fail(
            "privileges",
            f"the role {name} may not execute {', '.join(barred)}",
            "Run `arkloop migrate` with ARKLOOP_OWNER_DATABASE_URL: it grants them.",
        )
    role = service_role.find(sql, name)
    if not row_security.is_on(sql):
        yield ok("row security", "off")
    elif role is not None and role.is_above_policies:
        yield warn(
            "row security",
            f"on, but not before {name}, which is a superuser or has BYPASSRLS",
            "Let the service have a role of its own (docs/how-to/operations.md).",
        )
    elif open_tables := row_security.without_policy(sql):
        yield fail(
            "row security",
            f"on, but not for {', '.join(open_tables[:5])}",
            "Run `arkloop migrate` again: it completes the wall.",
        )
    else:
        yield ok("row security", "on")


def of_pooler(settings: Settings, engine: Engine) -> list[Finding]:
    """Find out whether a pooler is in between, and whether leases and migrations get around it."""
    try:
        is_pooled = _leads_to_pooler(engine)
    except DBAPIError:
        return []  # reported where it happened first
    if settings.direct_database_url is None:
        if not is_pooled:
            return [ok("pooler", "none")]
        return [
            warn(
                "pooler",
                f"{variable_of('ARKLOOP_DATABASE_URL')} leads to a pooler, and"
                " ARKLOOP_DIRECT_DATABASE_URL is not set: a lost worker is noticed after"
                f" {settings.lease_seconds:g} s instead of a heartbeat, and `arkloop migrate` is"
                " refused",
                "Set ARKLOOP_DIRECT_DATABASE_URL to Postgres itself.",
            )
        ]
    url = settings.direct_database_url
    direct = engine_of(url)
    try:
        return [_direct(is_pooled, _leads_to_pooler(direct), _same(engine, direct))]
    except DBAPIError as error:
        return [unreachable("direct postgres", "ARKLOOP_DIRECT_DATABASE_URL", url, error)]
    finally:
        direct.dispose()


def _direct(is_pooled: bool, is_direct_pooled: bool, is_same: bool) -> Finding:
    if is_direct_pooled:
        return fail(
            "pooler",
            "ARKLOOP_DIRECT_DATABASE_URL leads to a pooler, too",
            "Point it to Postgres itself.",
        )
    if not is_same:
        return fail(
            "pooler",
            "ARKLOOP_DIRECT_DATABASE_URL leads to another database than"
            f" {variable_of('ARKLOOP_DATABASE_URL')}: leases would protect nothing",
            "Point both to the same database.",
        )
    return ok("pooler", "leases and migrations go around it" if is_pooled else "none")


def _leads_to_pooler(engine: Engine) -> bool:
    with engine.connect() as sql:
        driver = sql.connection.driver_connection
        return driver is not None and leads_to_pooler(driver)


def _same(one: Engine, another: Engine) -> bool:
    """Return whether both lead to one database of one server."""
    found = []
    for engine in (one, another):
        with transaction(engine) as sql:
            found.append(sql.scalar(text(IDENTITY)))
    return bool(found[0] == found[1])
