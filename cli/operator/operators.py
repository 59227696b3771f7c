"""`arkloop admin operators`: who may look after all orgs over the API."""

from uuid import UUID

import click

from arkloop.cli.listing import print_fields
from arkloop.cli.operator.database import database, database_url_option, record
from arkloop.cli.output import print_line
from arkloop.shared.accounts import accounts
from arkloop.shared.accounts import operators as stored
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.times import rfc3339


@click.group()
def operators() -> None:
    """Add, remove and list the users who operate the service over the API and in the console."""


@operators.command()
@database_url_option
@click.argument("login")
def add(database_url: str, login: str) -> None:
    """Make the user of this login or email an operator; it counts within 2 seconds.

    An operator sees queues, workers and runs of all organizations, but not what they are about, and
    may queue runs again and cancel them.
    """
    with database(database_url) as connections, connections.transaction() as tx:
        user_id = _user(tx, login)
        if stored.add(tx, user_id):
            _record(tx, user_id, "operator.added")
    print_line(user_id)


@operators.command()
@database_url_option
@click.argument("login")
def remove(database_url: str, login: str) -> None:
    """Take the rights of an operator from a user; it counts within 2 seconds."""
    with database(database_url) as connections, connections.transaction() as tx:
        user_id = _user(tx, login)
        if not stored.remove(tx, user_id):
            raise click.ClickException(f"{login!r} is no operator.")
        _record(tx, user_id, "operator.removed")
    print_line(user_id)


@operators.command("list")
@database_url_option
def list_(database_url: str) -> None:
    """List the operators, the oldest first: id, login, email, and since when."""
    with database(database_url) as connections, connections.reading() as sql:
        rows = stored.list_(sql)
    for row in rows:
        print_fields(str(row.id), row.login, row.email, rfc3339(row.created_at))


def _user(tx: Transaction, login: str) -> UUID:
    user = accounts.find(tx.sql, login)
    if user is None:
        raise click.ClickException(f"No user has the login or email {login!r}.")
    return UUID(str(user.id))


def _record(tx: Transaction, user_id: UUID, action: str) -> None:
    for org in accounts.orgs_of(tx.sql, user_id):
        record(tx, org.id, action, "user", user_id)
