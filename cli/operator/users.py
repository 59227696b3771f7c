"""`arkloop users`, and the development key: directly in the database, without a server."""

import secrets
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import click
from sqlalchemy import Connection, select

from arkloop.cli.listing import print_fields
from arkloop.cli.operator.database import (
    database,
    database_url_option,
    find_org,
    lease_option,
    org_option,
    record,
    without_notifications,
)
from arkloop.cli.operator.erasure import confirmed, print_export, print_record, yes_option
from arkloop.cli.output import print_json, print_line
from arkloop.cli.private_file import write_private
from arkloop.shared.accounts import (
    accounts,
    api_keys,
    erasure,
    identity_providers,
    operators,
    password_resets,
)
from arkloop.shared.actors import OPERATE, PERMISSIONS_OF_ROLE, Actor
from arkloop.shared.errors import LoginTaken
from arkloop.shared.security import passwords
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.postgres import COMMAND_TIMEOUTS
from arkloop.shared.storage.tables.accounts import memberships
from arkloop.shared.times import rfc3339

DEV_NAME = "dev"


@click.group()
def users() -> None:
    """Create, list and help users, directly in the database; no server is needed."""


@users.command()
@database_url_option
@org_option
@click.option(
    "--create",
    "may_create",
    is_flag=True,
    help=("Create the organization if its slug is not in use."),
)
@click.option("--role", type=click.Choice(list(PERMISSIONS_OF_ROLE)), required=True)
@click.option("--login", required=True)
@click.option("--email", required=True)
@click.option("--password", help="At least 8 characters; prompted for if not given.")
def create(
    database_url: str,
    org: str,
    may_create: bool,
    role: str,
    login: str,
    email: str,
    password: str | None,
) -> None:
    """Create a user in an organization and print the new id."""
    if problems := accounts.problems_of(login=login, email=email):
        raise click.UsageError("\n".join(f"--{name}: {why}" for name, why in problems.items()))
    if password is None:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    if why := accounts.problem_of_password(password):
        raise click.UsageError(f"--password: {why}")
    password_hash = passwords.hash_(password)
    with database(database_url) as connections, connections.transaction() as tx:
        org_id = _org(tx, org, may_create)
        try:
            user_id = accounts.create_user(
                tx,
                org_id=org_id,
                role=role,
                login=login,
                email=email,
                password_hash=password_hash,
            )
        except LoginTaken as error:
            raise click.ClickException(str(error)) from None
        record(tx, org_id, "user.created", "user", user_id, role=role)
    print_line(user_id)


@users.command("list")
@database_url_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def list_(database_url: str, as_json: bool) -> None:
    """List all users, oldest first: id, login, email, org's name, role, org's id, org's slug."""
    with database(database_url) as connections, connections.reading() as sql:
        rows = accounts.list_(sql)
    fields = [
        {
            "id": str(row.id),
            "login": row.login,
            "email": row.email,
            "org": row.org_name,
            "org_id": row.org_id and str(row.org_id),
            "org_slug": row.org_slug,
            "role": row.role,
            "created_at": rfc3339(row.created_at),
        }
        for row in rows
    ]
    if as_json:
        print_json(fields)
        return
    for row in fields:
        print_fields(*map(row.get, ("id", "login", "email", "org", "role", "org_id", "org_slug")))


@users.command("reset-password")
@database_url_option
@click.argument("login")
def reset_password(database_url: str, login: str) -> None:
    """Print a token with which the user of this login or email chooses a new password, once.

    It ends after 24 hours. `POST /v1/auth/password-reset` takes it.
    """
    with database(database_url) as connections, connections.transaction() as tx:
        user_id = _user(tx.sql, login)
        token, _ = password_resets.create(tx, user_id)
        for org in accounts.orgs_of(tx.sql, user_id):
            record(tx, org.id, "auth.password_reset_created", "user", user_id)
    print_line(token)


@users.command()
@database_url_option
@click.argument("login")
def export(database_url: str, login: str) -> None:
    """Print what is known of a user, each thing as a line of JSON.

    These are the account, orgs, API keys and logins, and the threads that the user has created
    for no end user.
    """
    with database(database_url, COMMAND_TIMEOUTS) as connections:
        with connections.reading() as sql:
            user_id = _user(sql, login)
        print_export(erasure.export_user(connections, user_id))


@users.command()
@database_url_option
@lease_option
@yes_option
@click.argument("login")
def erase(database_url: str, lease_seconds: float, yes: bool, login: str) -> None:
    """Erase a user, and print the record of it as JSON.

    All access ends, private threads are deleted, and what the user has shared with an org stays
    there without a name. An org that would take the person in anew is named on standard error.
    """
    with without_notifications(database_url, lease_seconds=lease_seconds) as connections:
        with connections.reading() as sql:
            user_id = _user(sql, login)
            open_orgs = identity_providers.open_to(sql, user_id)
        for org in open_orgs:
            domains = ", ".join(org.email_domains)
            print_line(
                f"Org {org.org_id} takes in people of {domains} by its identity provider. Once"
                " erased, the person can join it as a new user, even if the org has removed them"
                " before: have the identity provider refuse them.",
                err=True,
            )
        confirmed(f"the user {login!r}", yes)
        print_record(lambda: erasure.erase_user(connections, user_id))


def _user(sql: Connection, login: str) -> UUID:
    user = accounts.find(sql, login)
    if user is None:
        raise click.ClickException(f"No user has the login or email {login!r}.")
    return UUID(str(user.id))


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
        operators.add(tx, user_id)
        scopes = {*actor.permissions, OPERATE}
        operating = replace(actor, permissions=frozenset(scopes))
        _, key = api_keys.create(tx, operating, name="arkloop dev", scopes=scopes)
    write_private(path, f"{key}\n")


def _dev_user(tx: Transaction) -> tuple[UUID, UUID]:
    """Return the ids of an owner of the org with the slug `dev`, and of this org; made if missing.

    Not by the login or the org's name, which anybody may register.
    """
    org_id = accounts.ensure_org(tx, DEV_NAME)
    owner = tx.sql.scalar(
        select(memberships.c.user_id)
        .where(memberships.c.org_id == org_id, memberships.c.role == "owner")
        .order_by(memberships.c.created_at)
        .limit(1)
    )
    if owner is not None:
        return owner, org_id
    login, email = DEV_NAME, f"{DEV_NAME}@localhost"
    if accounts.find(tx.sql, login) or accounts.find(tx.sql, email):
        login = f"{DEV_NAME}-{secrets.token_hex(4)}"
        email = f"{login}@localhost"
    user_id = accounts.create_user(
        tx,
        org_id=org_id,
        role="owner",
        login=login,
        email=email,
        # Nobody knows it: the key is the way in.
        password_hash=passwords.hash_(secrets.token_urlsafe(32)),
    )
    return user_id, org_id


def _org(tx: Transaction, id_or_slug: str, may_create: bool) -> UUID:
    if may_create and accounts.find_org(tx.sql, id_or_slug) is None:
        if why := accounts.problem_of_slug(id_or_slug):
            raise click.UsageError(f"--org: a new org's slug {why}")
        return accounts.ensure_org(tx, id_or_slug)
    advice = "" if may_create else "Use --create to create an organization with this slug."
    return find_org(tx.sql, id_or_slug, advice=advice)
