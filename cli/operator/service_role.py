"""The part of `arkloop migrate` that is about the service's role and row-level security."""

import click
import psycopg
from sqlalchemy import Engine, make_url, text

from arkloop.cli.operator.database import IDENTITY
from arkloop.cli.output import print_line
from arkloop.shared.config import variable_of
from arkloop.shared.storage import row_security, service_role
from arkloop.shared.storage.commit_waits import require_confirmation
from arkloop.shared.storage.postgres import BoundedConnection, connection_args

#: Seconds. A pooler whose connections are all in use may let a statement wait for minutes.
ANSWER_SECONDS = 3.0

ABOVE = (
    "row-level security has no effect: {} is a superuser or has BYPASSRLS. Let the service have a"
    " role of its own, and give the owner's URL as ARKLOOP_OWNER_DATABASE_URL."
)

STRAY = (
    "the tables belong to {0}, but the functions that keep the partitions of run_events to {1}."
    " As {1} or a superuser, let them belong to {0}, too:"
    " {2}"
)

OPEN = (
    "every role of the database may execute {1}, and Postgres lets their owner alone take that"
    " away: run this as {0}, whose URL ARKLOOP_OWNER_DATABASE_URL gives. No privilege was changed."
)

NEWER = (
    "the schema is newer than this release, which may not know all of its tables: use"
    " `--row-security on` of the release that made it. Nothing was changed."
)


def session_of(url: str) -> tuple[str | None, str | None]:
    """Return role and database, by its `IDENTITY`, of sessions of the service's URL.

    If it does not respond, the name in the URL counts as the role, and the database is None. Role
    and name differ behind a pooler that has users of its own.
    """
    try:
        with BoundedConnection.connect(**connection_args(url), autocommit=True) as session:
            session.answer_seconds = ANSWER_SECONDS
            query = f"SELECT current_user, ({IDENTITY})"
            [role, database] = session.execute(query).fetchone() or (None, None)
    except psycopg.Error:
        role = database = None
    return role or make_url(url).username, database


def prepare_service(
    engine: Engine,
    name: str | None,
    switch: str | None,
    lock_seconds: float,
    *,
    is_apart: bool,
) -> None:
    """Give the service's role what it needs, and keep, put up or take down the wall.

    `name` is the service's role, if it is known; `switch` is on, off or None, which leaves the wall
    as it is, but adds what a new release has. If the service has no role apart from the owner's, a
    `name` without a role is taken for a pooler's name of that role.

    Raises:
        ClickException: there is no such role, or the tables and their functions have different
            owners, or every role may execute these and this one cannot take that away.
        OperationalError, StandbyLost: as `schema.upgrade`.
    """
    with engine.begin() as sql:
        owner = sql.scalar(text("SELECT current_user"))
        role = service_role.find(sql, name or str(owner))
        if role is None and not is_apart:
            role = service_role.find(sql, str(owner))
        if role is None:
            raise click.ClickException(
                f"{variable_of('ARKLOOP_DATABASE_URL')}: there is no role {name!r}; create it with:"
                f" CREATE ROLE {name} LOGIN PASSWORD '…'"
            )
        if (owners := service_role.stray_functions(sql)) is not None:
            raise click.ClickException(STRAY.format(*owners, service_role.handing_over(owners[0])))
        if not role.owns_tables and not service_role.has_all(sql, role.name):
            require_confirmation(sql)
            service_role.grant(sql, role.name)
        elif service_role.open_to_all(sql):
            require_confirmation(sql)
            service_role.close(sql)
        # Postgres only warns where a role that is not the owner revokes.
        if left := service_role.open_to_all(sql):
            of = service_role.owner_of_functions(sql)
            raise click.ClickException(OPEN.format(of, " and ".join(left)))
        is_on = row_security.is_on(sql)
    if switch == "off":
        row_security.lift(engine, lock_seconds=lock_seconds)
    elif switch == "on" or is_on:
        row_security.enforce(engine, for_owner=role.owns_tables, lock_seconds=lock_seconds)
        if role.is_above_policies:
            print_line(f"Warning: {ABOVE.format(role.name)}", err=True)


def switch_newer(engine: Engine, switch: str | None, lock_seconds: float) -> None:
    """Take down the wall of a schema that is newer than this code, where `switch` is off.

    Where it is on, a wall that is up stays as the newer release has made it.

    Raises:
        ClickException: `switch` is on, and the wall is down.
        OperationalError, StandbyLost: as `schema.upgrade`.
    """
    if switch == "off":
        row_security.lift(engine, lock_seconds=lock_seconds)
    elif switch == "on":
        with engine.connect() as sql:
            is_on = row_security.is_on(sql)
        if not is_on:
            raise click.ClickException(NEWER)
