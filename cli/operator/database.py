"""Commands that use the database directly, without a server."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import click
from sqlalchemy import Connection

from arkloop.shared.accounts import accounts
from arkloop.shared.audit import audit_log
from arkloop.shared.audit.audit_log import OPERATOR, Detail, NewEntry
from arkloop.shared.config import FALLBACKS, Settings
from arkloop.shared.database_url import InvalidDatabaseUrl, normalize
from arkloop.shared.errors import Unavailable
from arkloop.shared.outage_log import reason_of
from arkloop.shared.storage.connections import Connections, Transaction, connect
from arkloop.shared.storage.postgres import (
    COMMAND_TIMEOUTS,
    REQUEST_TIMEOUTS,
    Timeouts,
    connection_args,
)

database_url_option = click.option(
    "--database-url",
    envvar=["ARKLOOP_DATABASE_URL", FALLBACKS["ARKLOOP_DATABASE_URL"]],
    required=True,
    help="Postgres to write to.  [default: $ARKLOOP_DATABASE_URL, else $DATABASE_URL]",
)
lease_option = click.option(
    "--lease-seconds",
    envvar="ARKLOOP_LEASE_SECONDS",
    type=click.FloatRange(min=1),
    default=15.0,
    show_default=True,
    help="The workers' lease: a worker that is silent for longer has lost its runs.",
)
org_option = click.option("--org", "org", required=True, help="Id or slug of the organization.")

#: What sessions of one database of one server find alike, whatever their settings.
IDENTITY = """
    SELECT oid || ' ' || current_database()
        || ' ' || (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint
    FROM pg_database WHERE datname = current_database()
"""

_SHOWN_IDS = 10
#: How a message names the URL of the option above.
_GIVEN_BY = f"--database-url (ARKLOOP_DATABASE_URL, {FALLBACKS['ARKLOOP_DATABASE_URL']})"


def checked(url: str, *, name: str = _GIVEN_BY) -> str:
    """Return the URL in SQLAlchemy's form.

    Raises:
        ClickException: it is malformed; the message has the `name` of what gave it.
    """
    try:
        return normalize(url.strip())  # it may come from a file that ends with a newline
    except InvalidDatabaseUrl as error:
        raise click.ClickException(f"{name}: {error}") from None


def place(url: str) -> str:
    """Return hosts, ports and database of a URL, without its user and its options: some of those
    are secret, as a password is.
    """
    args = connection_args(url)
    return "/".join(filter(None, (server_of(args), args.get("dbname"))))


def server_of(args: Mapping[str, Any]) -> str:
    """Return hosts and ports of psycopg's parameters, or the service whose file has them."""
    host, service = args.get("host") or args.get("hostaddr"), args.get("service")
    if service and not host:
        return f"service {service}"
    return f"{host or 'localhost'}:{args.get('port') or 5432}"


class Unanswered(click.ClickException):
    """The database was out of reach; a commit may have been carried out all the same."""

    def __init__(self, error: Unavailable) -> None:
        # Without a cause the error itself says what is wrong, such as a schema that is too old.
        self.reason = reason_of(error)
        super().__init__(f"{error} ({self.reason})" if error.__cause__ else str(error))


@contextmanager
def database(
    url: str, timeouts: Timeouts = REQUEST_TIMEOUTS, **known: Any
) -> Iterator[Connections]:
    """Connect to the database alone: Redis and the broker are never used here.

    `known` are settings of the service that the command needs, by their names in `Settings`.
    """
    settings = Settings(
        database_url=checked(url),
        redis_url="redis://",
        broker_url="redis://",
        jwt_secret="",
        **known,
    )
    connections = connect(settings, application="arkloop-cli", timeouts=timeouts, pool_size=1)
    try:
        yield replace(connections, has_redis=False)
    except Unavailable as error:
        raise Unanswered(error) from None
    finally:
        connections.close()


@contextmanager
def without_notifications(url: str, **known: Any) -> Iterator[Connections]:
    """Connect for a command that changes runs; workers find it in Postgres by themselves."""
    with database(url, COMMAND_TIMEOUTS, **known) as connections:
        yield replace(connections, send=lambda _connections, _notification: None)


def find_org(sql: Connection, id_or_slug: str, *, advice: str = "") -> UUID:
    """Return the id of the org with this id or slug; a name is one that anybody may take.

    Raises:
        ClickException: there is no such org. The message lists those of this name; `advice` is
            what else to do.
    """
    org_id = accounts.find_org(sql, id_or_slug)
    if org_id is not None:
        return org_id
    problem = f"No organization has the id or slug {id_or_slug!r}."
    if named := accounts.orgs_named(sql, id_or_slug):
        ids = "\n".join(f"  {org_id}" for org_id in named[:_SHOWN_IDS])
        problem += (
            " Names are not unique. Orgs of this name, oldest first (`arkloop users list` shows"
            f" their members):\n{ids}"
        )
    raise click.ClickException(f"{problem}\n{advice}".rstrip())


def record(
    tx: Transaction,
    org_id: UUID,
    action: str,
    target_type: str,
    target_id: object,
    **details: Detail,
) -> None:
    """Record in the org's audit log what the operator does in the transaction."""
    target = (target_type, target_id)
    audit_log.record(
        tx,
        NewEntry(org_id=org_id, action=action, by=OPERATOR, target=target, details=details),
    )
