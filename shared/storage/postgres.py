"""Engines whose statements end: each is answered within its limits, or its connection is given up.

Postgres' own time-outs end what waits in a server that works. A server that is
frozen, or whose host vanished without a word, runs no timer: the client's does.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, cast

import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from arkloop.shared.config import Settings
from arkloop.shared.storage import hosts
from arkloop.shared.storage.checkouts import Patience
from arkloop.shared.storage.epoch import FormerPrimary
from arkloop.shared.storage.outage import Outage


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds. Each is longer than the one before, so that the server's own word comes first.

    `checkout` is for the wait before the statement, for a connection.
    """

    lock: float
    statement: float
    answer: float
    checkout: Patience


#: A request answers 503 within two seconds or so, whatever Postgres does; within one if it is
#: other requests that keep the connections busy, or a little later if the process stood still.
REQUEST_TIMEOUTS = Timeouts(lock=1.5, statement=1.8, answer=2.0, checkout=Patience(0.5, 0.2))
#: A run waits for a short outage rather than to be let go.
RUN_TIMEOUTS = Timeouts(lock=3, statement=8, answer=10, checkout=Patience(10, 10))
#: The sweep deletes rows bit by bit. Over a connection that is half open it waits no longer than
#: this, and lost runs with it.
MAINTENANCE_TIMEOUTS = Timeouts(lock=3, statement=10, answer=12, checkout=Patience(12, 12))
#: A command of the operator may look at whole tables.
COMMAND_TIMEOUTS = Timeouts(lock=30, statement=300, answer=310, checkout=Patience(310, 310))


FIRST_WITH_TRANSACTION_TIMEOUT = 170_000
FIRST_WITH_IDLE_SESSION_TIMEOUT = 140_000
#: A statement is prepared at its fourth execution by a connection.
PREPARED_AFTER = 3

#: The setting by which row-level security knows which orgs a statement works for, and its value for
#: the service as a whole (see `row_security.py`).
ORGS = "arkloop.orgs"
SERVICE = "*"
_SET_ORGS = "SELECT set_config('arkloop.orgs', %s, %s)"

#: Key in `Connection.info` of the statement that makes the settings of one transaction.
_SETTINGS = "settings_of_transaction"
# A pooler gives each client a process id of its own making: the server's is another one then, and
# nothing is set, since a pooler would pass the setting on to other clients.
_SESSION = """
SELECT (
    SELECT count(set_config(name, value, false))
    FROM unnest(%s::text[], %s::text[]) AS s (name, value) WHERE pg_backend_pid() = %s
), coalesce(row_security_active(to_regclass('runs')::oid), false)
"""

#: A host that vanished without a word must not hold a connection for minutes; one that takes no
#: writes must not get one: libpq then tries the next of a list. It learns this without a round
#: trip from Postgres 14 on.
CONNECTING = {
    "connect_timeout": 2,  # for each host of a list
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "target_session_attrs": "read-write",
    # Before what a role, a database or PGCLIENTENCODING says: our own arrays are UTF-8, and another
    # encoding would damage texts without a word. Poolers keep it for each client.
    "client_encoding": "UTF8",
}

# What a server that answers says when it is not the primary (SQLSTATE). All connections of the
# pool may lead to the same place: none of them is used again.
_NOT_THE_PRIMARY = (
    "08",  # connection exceptions, as poolers report them
    "25006",  # read_only_sql_transaction: a standby, a failover, a full disk at some vendors
    "40001",  # of a standby: a conflict with recovery; without serializable there is no other
    "55000",  # "recovery is in progress"
    "57P",  # shut down, crashed, starting, database dropped
)
# These concern one statement, or a session that the server ends itself. The others still read, and
# there may be no new ones before the disk has space.
OUT_OF_RESOURCES = (
    "53",  # disk full, out of memory, too many connections
    "58",  # input and output errors of the system
)


class ServerSilent(psycopg.OperationalError):
    """A statement got no answer in time; whether it was carried out is not known."""


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is closed when a statement gets no response within `answer_seconds`."""

    answer_seconds: float | None = None
    #: Whether row-level security is on for this role.
    is_walled = False
    #: The orgs that the session works for; None where it has no settings, or they are not known.
    session_orgs: str | None = None
    _orgs = SERVICE
    _has_session = False
    _has_said_orgs = False

    def begin_session(self, orgs: str) -> None:
        """Keep in mind that the session, which is this connection's own, works for these orgs."""
        self.session_orgs, self._has_session = orgs, True

    @contextmanager
    def working_for(self, orgs: str) -> Iterator[None]:
        """Let what is executed in the block see the rows of these orgs alone."""
        if self.session_orgs == orgs:
            yield
            return
        self.work_for(orgs)
        try:
            yield
        finally:
            self.cursor_factory = psycopg.Cursor

    def work_for(self, orgs: str) -> None:
        """Let what is executed from now on see the rows of these orgs alone."""
        self._orgs, self._has_said_orgs = orgs, False
        self.cursor_factory = _CursorForOrgs

    def execute_for_orgs(self, execute: Callable[[], object]) -> None:
        """Execute a statement, in one round trip with the setting that it needs before it.

        In a transaction the setting ends with it. Otherwise it stays, for the next block of the
        same orgs, if the session is the connection's own, and is repeated if it is not.
        """
        if self._has_said_orgs:
            execute()
            return
        stays = self.autocommit and self._has_session
        if stays:
            self.session_orgs = None  # an error undoes the setting
        with self.pipeline():
            psycopg.Cursor(self).execute(_SET_ORGS, [self._orgs, not stays])
            execute()
        if stays:
            self.session_orgs = self._orgs
        self._has_said_orgs = stays or not self.autocommit

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, timeout or self.answer_seconds)
        except psycopg.OperationalError as error:
            # Whatever else went wrong, the server has said so and the statement is over.
            if self.pgconn.transaction_status != TransactionStatus.ACTIVE:
                raise
            self.pgconn.finish()
            raise ServerSilent(f"no response within {self.answer_seconds:g} s") from error


class _CursorForOrgs(psycopg.Cursor[Any]):
    """A cursor of a connection that works for some orgs."""

    def execute(self, *args: Any, **kwargs: Any) -> Self:
        connection = cast(BoundedConnection, self.connection)
        connection.execute_for_orgs(partial(super().execute, *args, **kwargs))
        return self

    def executemany(self, *args: Any, **kwargs: Any) -> None:
        connection = cast(BoundedConnection, self.connection)
        connection.execute_for_orgs(partial(super().executemany, *args, **kwargs))


def make_engine(
    settings: Settings,
    *,
    application: str,
    pool_size: int,
    timeouts: Timeouts,
    outage: Outage,
    on_connect: Callable[[psycopg.Connection[Any]], None],
) -> Engine:
    """Create an engine in autocommit mode that opens its first connection on demand.

    Who waited in the pool while `outage` began opens no connection. `on_connect` gets each new
    connection before it is used.
    """
    # A process that is frozen within a transaction must not keep its locks until others
    # want to take its runs over.
    idle_in_transaction = settings.lease_seconds / 3
    transaction = max(timeouts.statement, settings.lease_seconds * 2 / 3)
    engine = create_engine(
        settings.database_url,
        # Most of what is done here is one statement; a transaction is the exception that says so.
        isolation_level="AUTOCOMMIT",
        pool_size=pool_size,
        max_overflow=0,
        hide_parameters=True,  # they are what people and models said, and no log's business
        pool_use_lifo=True,
        connect_args={
            **CONNECTING,
            "application_name": application,
            "prepare_threshold": None,  # decided below
        },
    )
    values = {
        "statement_timeout": str(round(timeouts.statement * 1000)),
        "lock_timeout": str(round(timeouts.lock * 1000)),
        "idle_in_transaction_session_timeout": str(round(idle_in_transaction * 1000)),
        # Every statement of the service uses an index. A plan that was made while a table was
        # small, or just restored, would read all of it, and be kept while the table grows.
        "enable_bitmapscan": "off",
        "enable_seqscan": "off",
        # A report of one org must not take the processors that other orgs' runs need.
        "max_parallel_workers_per_gather": "0",
        "TimeZone": "UTC",
        "DateStyle": "ISO",  # psycopg reads no other
        # What our statements mean must not depend on the role: NULL in arrays, backslashes in
        # patterns, all digits of numbers.
        "array_nulls": "on",
        "standard_conforming_strings": "on",
        "extra_float_digits": "1",
        # A statement outside of a transaction waits for locks, and then reads what others wrote.
        "default_transaction_isolation": "read committed",
        ORGS: SERVICE,
    }

    @event.listens_for(engine, "do_connect")
    def bounded(_dialect: Any, record: Any, args: Any, kwargs: Any) -> Any:
        if outage.began_meanwhile:
            raise ServerSilent("Postgres was unavailable to another request a moment ago")
        connection = BoundedConnection.connect(*args, **kwargs, autocommit=True)
        connection.answer_seconds = timeouts.answer
        try:
            of_server = dict(values)
            if connection.info.server_version >= FIRST_WITH_TRANSACTION_TIMEOUT:
                of_server["transaction_timeout"] = str(round(transaction * 1000))
            of_session = dict(of_server)
            if connection.info.server_version >= FIRST_WITH_IDLE_SESSION_TIMEOUT:
                of_session["idle_session_timeout"] = "0"  # a pool's connections rest for hours
            is_direct = _set_for_session(connection, of_session)
            on_connect(connection)
        except FormerPrimary:
            others = hosts.without(kwargs, connection.info)
            connection.close()
            if others is None:
                raise
            return bounded(_dialect, record, args, others)
        except BaseException:
            connection.close()
            raise
        if is_direct:
            connection.begin_session(SERVICE)
        else:
            record.info[_SETTINGS] = _for_transaction(of_server)
        prepares = settings.prepared_statements
        if prepares or (prepares is None and is_direct):
            connection.prepare_threshold = PREPARED_AFTER
        return connection

    event.listen(engine, "handle_error", _end_if_outage)
    return engine


def _set_for_session(connection: BoundedConnection, values: Mapping[str, str]) -> bool:
    """Make the settings, unless a pooler stands between; return whether they were made."""
    parameters = [[*values], [*values.values()], connection.info.backend_pid]
    made, is_walled = connection.execute(_SESSION, parameters).fetchone() or (0, False)
    connection.is_walled = is_walled
    return bool(made)


def _for_transaction(values: Mapping[str, str]) -> str:
    made = (f"set_config('{name}', '{value}', true)" for name, value in values.items())
    return f"SELECT {', '.join(made)}"


def limit_transaction(sql: Connection, orgs: str) -> None:
    """Make the settings of the transaction that has just begun, where the session has none.

    Not by an event of the engine: with one, SQLAlchemy takes longer for every statement.
    """
    if settings := sql.info.get(_SETTINGS):
        sql.exec_driver_sql(f"{settings}, set_config('{ORGS}', '{orgs}', true)")


@contextmanager
def working_for(sql: Connection, orgs: str) -> Iterator[None]:
    """Let what is executed in the block see the rows of these orgs alone, if there is a wall.

    Through a pooler `limit_transaction` does so.
    """
    driver = sql.connection.driver_connection
    if is_pooled(sql) or not cast(BoundedConnection, driver).is_walled:
        yield
        return
    with cast(BoundedConnection, driver).working_for(orgs):
        yield


@contextmanager
def seeing_all(sql: Connection) -> Iterator[None]:
    """Let the statements in the block, which is in a transaction, see the rows of all orgs.

    For questions such as whether a name is taken, whose answers say nothing else, and for changes
    whose triggers ask such a question.
    """
    orgs = sql.scalar(text(f"SELECT current_setting('{ORGS}', true)"))
    set_orgs = text(f"SELECT set_config('{ORGS}', :orgs, true)")
    sql.execute(set_orgs, {"orgs": SERVICE})
    yield
    sql.execute(set_orgs, {"orgs": orgs})


def is_pooled(sql: Connection) -> bool:
    """Return whether the connection leads to a pooler, where only a transaction has settings."""
    return _SETTINGS in sql.info


def leads_to_pooler(connection: psycopg.Connection[Any]) -> bool:
    """Return whether a plain connection leads to a pooler, where no session lock can be held."""
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    return row is not None and row[0] != connection.info.backend_pid


def connection_args(url: str) -> dict[str, Any]:
    """Return psycopg's parameters for a URL of SQLAlchemy's, without a pool or limits."""
    parsed = make_url(url)
    _, of_url = parsed.get_dialect()().create_connect_args(parsed)
    return {**of_url, **CONNECTING}


def _end_if_outage(context: ExceptionContext) -> None:
    state = getattr(context.original_exception, "sqlstate", None) or ""
    if state.startswith(OUT_OF_RESOURCES):
        context.invalidate_pool_on_disconnect = False
    elif context.connection is not None and state.startswith(_NOT_THE_PRIMARY):
        context.is_disconnect = True


def is_outage(error: DBAPIError) -> bool:
    """Return whether Postgres could not do its work, whatever was asked of it."""
    return isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated


def is_locked(error: BaseException | None) -> bool:
    """Return whether the error means that somebody else held a lock for too long."""
    return isinstance(error, DBAPIError) and isinstance(error.orig, errors.LockNotAvailable)


def refuses_writes(error: BaseException | None) -> bool:
    """Return whether a server that works could not write: for its disk, its mode or a lock."""
    code = getattr(getattr(error, "orig", None), "sqlstate", None) or ""
    return code.startswith(("53", "58")) or code in ("25006", "55P03")


def is_unknown_to_schema(error: DBAPIError) -> bool:
    """Return whether a table, column, type or function is missing, as before a migration."""
    missing = (errors.UndefinedTable, errors.UndefinedColumn, errors.UndefinedFunction)
    return isinstance(error.orig, (*missing, errors.UndefinedObject))


def transaction_id(sql: Connection) -> str:
    """Return the id of the open transaction, by which `has_ended` knows it."""
    return str(sql.scalar(text("SELECT pg_current_xact_id()::text")))


def has_ended(sql: Connection, transaction_id: str) -> bool:
    """Return whether a transaction is committed or rolled back, so that what it wrote is seen now
    or never. One that waits for a standby at its commit has not ended; nor has one that this
    server, a standby until now, does not know.
    """
    seen = "SELECT pg_visible_in_snapshot(CAST(:id AS xid8), pg_current_snapshot())"
    return bool(sql.scalar(text(seen), {"id": transaction_id}))


def is_read_only(sql: Connection) -> bool:
    """Return whether Postgres refuses writes, as a standby does; such a connection is ended."""
    refuses = bool(sql.scalar(text("SELECT current_setting('transaction_read_only')::boolean")))
    if refuses:
        sql.invalidate()
    return refuses


def is_silence(error: BaseException | None) -> bool:
    """Return whether the driver's error means that the server did not respond at all."""
    return isinstance(error, ServerSilent | psycopg.errors.ConnectionTimeout)
