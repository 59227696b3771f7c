"""`arkloop migrate`: bring the database's schema up to date. The Procfile's `release` line."""

import os
import signal
import sys
import time
from functools import partial
from math import isnan

import click
from psycopg.errors import LockNotAvailable
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError

from arkloop.cli.operator.database import IDENTITY, checked, place
from arkloop.cli.operator.service_role import prepare_service, session_of, switch_newer
from arkloop.cli.output import print_line
from arkloop.shared.config import MAX_RETENTION_DAYS, Settings
from arkloop.shared.events import partitions
from arkloop.shared.storage import hosts, schema
from arkloop.shared.storage.commit_waits import StandbyLost
from arkloop.shared.storage.postgres import CONNECTING, leads_to_pooler
from arkloop.shared.storage.server_checks import UnsuitableServer, check_postgres

CONNECT_SECONDS = 3
PAUSE_SECONDS = 0.25
_OWNER = "ARKLOOP_OWNER_DATABASE_URL"
_DIRECT = "ARKLOOP_DIRECT_DATABASE_URL"
_OF_SERVICE = ("ARKLOOP_DATABASE_URL", "DATABASE_URL")


def _refuse_nan(_context: click.Context, _option: click.Parameter, seconds: float) -> float:
    if isnan(seconds):
        raise click.BadParameter("is not a number")
    return seconds


@click.command()
@click.option(
    "--wait",
    "wait_seconds",
    type=click.FloatRange(0),
    callback=_refuse_nan,
    default=15,
    show_default=True,
    help="Seconds to wait for a database that is not ready yet.",
)
@click.option(
    "--lock-wait",
    "lock_seconds",
    type=click.FloatRange(0),
    callback=_refuse_nan,
    default=60,
    show_default=True,
    help="Seconds to wait for sessions that lock a table or have an older transaction open.",
)
@click.option(
    "--row-security",
    type=click.Choice(["on", "off"]),
    help="Put row-level security on all tables, or take it away.  [default: leave it as it is]",
)
@click.option(
    "--retention-days",
    envvar="ARKLOOP_RETENTION_DAYS",
    type=click.IntRange(1, MAX_RETENTION_DAYS),
    default=Settings.retention_days,
    show_default=True,
    help="The service's setting: for how long partitions of events are made, if any are.",
)
def migrate(
    wait_seconds: float, lock_seconds: float, row_security: str | None, retention_days: int
) -> None:
    """Bring the schema of ARKLOOP_DATABASE_URL up to date and print its version.

    If that points to a pooler, set ARKLOOP_DIRECT_DATABASE_URL to Postgres itself. If the service's
    role does not own the tables, set ARKLOOP_OWNER_DATABASE_URL to the URL of Postgres itself with
    the role that does: the service's role gets the privileges that it needs. A schema that is newer
    than this code is left unchanged, except that row-level security can be taken away.
    """
    if os.getpid() == 1:  # in a container; a signal without a handler does not end it
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    variable = _first_set(_OWNER, _DIRECT, *_OF_SERVICE)
    if variable is None:
        raise click.ClickException(
            "ARKLOOP_DATABASE_URL is required (a URL starting with postgresql://)"
        )
    url = _url_of(variable)
    engine = _engine(url)
    try:
        version = _check(engine, variable, wait_seconds)
        if version and schema.is_foreign(version):
            raise click.ClickException(
                f"Cannot migrate {place(url)} ({variable}): {schema.shortfall(version)}"
            )
        role = _role_of_service(engine, variable)
        if schema.is_newer(version) and row_security != "off":
            # Nothing is changed, so a rollback need not wait for a migration that is in progress.
            switch_newer(engine, row_security, lock_seconds)
        else:
            version = _change(engine, role, row_security, lock_seconds)
        print_line(version)
        if not schema.is_newer(version):
            _make_room(engine, retention_days, lock_seconds)
    except (DBAPIError, StandbyLost) as error:
        problem = f"Cannot migrate {place(url)} ({variable}): {_reason(error)}"
        raise click.ClickException(problem) from None
    finally:
        engine.dispose()


def _make_room(engine: Engine, retention_days: int, lock_seconds: float) -> None:
    """Make partitions where sweeps make none; a release does not fail where that has to wait."""
    try:
        made = partitions.make_room(
            engine,
            retention_days=retention_days,
            lock_seconds=lock_seconds,
            report=partial(print_line, err=True),
        )
        if made:
            print_line(f"Made {', '.join(made)}", err=True)
    except partitions.TableInUse as error:
        print_line(f"Warning: {error}; run it again when that has finished", err=True)
    except (OperationalError, StandbyLost) as error:
        if isinstance(error, OperationalError) and not isinstance(error.orig, LockNotAvailable):
            raise
        print_line(f"Warning: no partition of run_events was made: {_reason(error)}", err=True)


def _value_of(name: str) -> str:
    return os.environ.get(name, "").strip()


def _first_set(*names: str) -> str | None:
    return next(filter(_value_of, names), None)


def _url_of(name: str) -> str:
    """Return the URL that the variable has. Raises: ClickException: it is malformed."""
    return checked(_value_of(name), name=name)


def _engine(url: str) -> Engine:
    return create_engine(
        url,
        connect_args={
            **CONNECTING,
            "connect_timeout": CONNECT_SECONDS,
            "prepare_threshold": None,
        },
    )


def _check(engine: Engine, variable: str, wait_seconds: float) -> str:
    """Wait for the database, and return the version of its schema, which may be empty.

    `variable` is the one that leads there.

    Raises:
        ClickException: nothing can be migrated there.
        OperationalError: it does not answer.
    """
    _wait_for(engine, wait_seconds)
    with engine.connect() as sql:
        try:
            check_postgres(sql)
        except UnsuitableServer as error:
            raise click.ClickException(str(error)) from None
        driver = sql.connection.driver_connection
        if driver is not None and leads_to_pooler(driver):
            # A variable for migrations is used before all that could be set beside it.
            to_correct = "it" if variable in (_OWNER, _DIRECT) else _DIRECT
            raise click.ClickException(
                f"{variable} points to a pooler, where migrations cannot hold their lock:"
                f" point {to_correct} to Postgres itself"
            )
        return schema.current_version(sql) or ""


def _role_of_service(engine: Engine, variable: str) -> str | None:
    """Return the role of the service, None if it has no URL apart from that of `variable`.

    Raises:
        ClickException: its URL responds, and leads to another database than `engine`.
    """
    of_service = _first_set(*_OF_SERVICE)
    url = _url_of(of_service) if of_service else ""
    if not url or make_url(url) == engine.url:
        return None
    role, database = session_of(url)
    if database is not None:
        with engine.connect() as sql:
            found = sql.scalar(text(IDENTITY))
        if database != found:
            raise click.ClickException(
                f"{place(_url_of(variable))} ({variable}) is another database than that of the"
                f" service, {place(url)} ({of_service}): point both to the same one. Nothing was"
                " changed."
            )
    return role


def _change(engine: Engine, role: str | None, switch: str | None, lock_seconds: float) -> str:
    """Migrate, and prepare the service's role and the wall; returns the schema's version then.

    All of it with one lock: privileges and policies cannot be changed by two sessions at once.
    """
    is_apart = bool(_value_of(_OWNER))
    with schema.locked(engine, report=partial(print_line, err=True)) as session:
        version = schema.upgrade(session, lock_seconds=lock_seconds)
        if schema.is_newer(version):
            switch_newer(engine, switch, lock_seconds)
        else:
            prepare_service(engine, role, switch, lock_seconds, is_apart=is_apart)
    return version


def _wait_for(engine: Engine, seconds: float) -> None:
    """Return once the database answers. Raises: OperationalError: it does not."""
    deadline = time.monotonic() + seconds
    told = False
    while True:
        try:
            with engine.connect():
                return
        except OperationalError as error:
            if time.monotonic() > deadline:
                raise
            if not told:
                print_line(f"Waiting for the database: {_reason(error)}", err=True)
                told = True
        time.sleep(PAUSE_SECONDS)


def _reason(error: DBAPIError | StandbyLost) -> str:
    if isinstance(error, StandbyLost):
        return str(error)
    if isinstance(error.orig, LockNotAvailable):
        return (
            "another session locks a table or has an older transaction open, such as a dump or a"
            " long query; retry when it has finished"
        )
    return hosts.failure(str(error.orig))
