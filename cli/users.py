"""`arkloop users`, and the development key: straight to the database, for whoever may reach it."""

import secrets
from pathlib import Path
from uuid import UUID

import click
from sqlalchemy import select

from cli.database import database, database_url_option
from cli.output import print_json, print_line
from shared import accounts, api_keys, passwords
from shared.actors import PERMISSIONS_OF_ROLE, Actor
from shared.connections import Transaction
from shared.errors import LoginTaken
from shared.tables import memberships, orgs
from shared.tables import users as users_table
from shared.times import rfc3339

DEV_NAME = "dev"


@click.group()
def users() -> None:
    """Make and list users, straight in the database: no server is needed."""


@users.command()
@database_url_option
@click.option("--org", "org_name", required=True, help="The oldest org of this name, or a new one.")
@click.option("--role", type=click.Choice(list(PERMISSIONS_OF_ROLE)), required=True)
@click.option("--login", required=True)
@click.option("--email", required=True)
@click.option("--password", help="At least 8 characters; asked for if it is not given.")
def create(
    database_url: str, org_name: str, role: str, login: str, email: str, password: str | None
) -> None:
    """Make a user in an org and print the new id."""
    if problems := accounts.problems_of(login=login, email=email):
        raise click.UsageError("\n".join(f"--{name}: {why}" for name, why in problems.items()))
    if password is None:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    if why := accounts.problem_of_password(password):
        raise click.UsageError(f"--password: {why}")
    password_hash = passwords.hash_(password)
    with database(database_url) as connections, connections.transaction() as tx:
        try:
            user_id = accounts.create_user(
                tx,
                org_id=_org(tx, org_name),
                role=role,
                login=login,
                email=email,
                password_hash=password_hash,
            )
        except LoginTaken as error:
            raise click.ClickException(str(error)) from None
    print_line(user_id)


@users.command("list")
@database_url_option
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def list_(database_url: str, as_json: bool) -> None:
    """List all users, oldest first: id, login, email, org, role."""
    with database(database_url) as connections, connections.reading() as sql:
        rows = accounts.list_(sql)
    if as_json:
        fields = [
            {
                "id": str(row.id),
                "login": row.login,
                "email": row.email,
                "org": row.org_name,
                "role": row.role,
                "created_at": rfc3339(row.created_at),
            }
            for row in rows
        ]
        print_json(fields)
        return
    for row in rows:
        print_line(f"{row.id}  {row.login}  {row.email}  {row.org_name}  {row.role}")


def ensure_dev_key(database_url: str, path: Path) -> None:
    """See to it that `path` (mode 0600) has an API key that works, of user `dev` in org `dev`.

    A key in it that still works is left alone. Both are made if they are missing.
    """
    with database(database_url) as connections, connections.transaction() as tx:
        kept = path.read_text(errors="replace").strip() if path.is_file() else ""
        if api_keys.find(tx.sql, kept) is not None:
            path.chmod(0o600)
            return
        user_id, org_id = _dev_user(tx)
        role = "owner"
        actor = Actor(
            org_id=org_id, user_id=user_id, role=role, permissions=PERMISSIONS_OF_ROLE[role]
        )
        _, key = api_keys.create(tx, actor, name="arkloop dev")
    _write_secret(path, key)


def _dev_user(tx: Transaction) -> tuple[UUID, UUID]:
    """The ids of the user `dev` and of their org."""
    found = tx.sql.execute(
        select(users_table.c.id, memberships.c.org_id)
        .join(memberships, memberships.c.user_id == users_table.c.id)
        .where(users_table.c.login == DEV_NAME)
    ).one_or_none()
    if found is not None:
        return found.id, found.org_id
    org_id = _org(tx, DEV_NAME)
    user_id = accounts.create_user(
        tx,
        org_id=org_id,
        role="owner",
        login=DEV_NAME,
        email=f"{DEV_NAME}@localhost",
        # Nobody knows it: the key is the way in.
        password_hash=passwords.hash_(secrets.token_urlsafe(32)),
    )
    return user_id, org_id


def _org(tx: Transaction, name: str) -> UUID:
    oldest = select(orgs.c.id).where(orgs.c.name == name).order_by(orgs.c.created_at).limit(1)
    return tx.sql.scalar(oldest) or accounts.create_org(tx, name)


def _write_secret(path: Path, text: str) -> None:
    """Complete and for the owner's eyes alone at every moment."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fresh.touch(mode=0o600)
    fresh.write_text(f"{text}\n")
    fresh.rename(path)
