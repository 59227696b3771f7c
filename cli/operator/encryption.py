"""`arkloop keys rotate-encryption` and `erase-encryption`: the keys of stored secrets."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import click

from arkloop.cli.operator.database import (
    database,
    database_url_option,
    find_org,
    org_option,
    record,
)
from arkloop.cli.output import print_line
from arkloop.shared.accounts import identity_providers
from arkloop.shared.catalog import sealed_columns as catalog
from arkloop.shared.delivery import endpoints
from arkloop.shared.sealing import org_keys
from arkloop.shared.sealing.sealed_columns import Counts, reseal
from arkloop.shared.security.encryption import Keyring, keyring, split
from arkloop.shared.storage.connections import Connections

ONE_KEY = (
    "Only one encryption key was given, so nothing that is encrypted with another one was encrypted"
    " again. To rotate, give both keys: new,old."
)
COLUMNS = (*catalog.SEALED, *endpoints.SEALED, *identity_providers.SEALED)


def _keyring(_context: click.Context, _parameter: click.Parameter, value: str) -> Keyring:
    keys = split(value)
    if not keys or any(len(key.encode()) < 32 for key in keys):
        raise click.BadParameter("each key must have at least 32 bytes")
    return keyring(value)


def _encryption_key_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--encryption-key",
        "ring",
        envvar="ARKLOOP_ENCRYPTION_KEY",
        required=True,
        callback=_keyring,
        help="Keys with commas between; the first encrypts.  [default: $ARKLOOP_ENCRYPTION_KEY]",
    )(command)


@click.command("rotate-encryption")
@database_url_option
@_encryption_key_option
def rotate_encryption(database_url: str, ring: Keyring) -> None:
    """Encrypt the keys of all organizations with the first of the encryption keys.

    Secrets that are older than their organization's key are encrypted with that. It can run while
    the service does, and again after it was stopped. Status 1 if something cannot be decrypted by
    any of the keys; it stays as it is.
    """
    with database(database_url) as connections:
        keys, unreadable = org_keys.rewrap(connections, ring)
        if unreadable:
            print_line(f"org_keys.wrapped: {unreadable} cannot be decrypted", err=True)
        total = _reseal(connections, ring)
    print_line(f"{keys} keys of organizations and {total.resealed} secrets encrypted again")
    if ring.count == 1:
        print_line(ONE_KEY, err=True)
    if unreadable or total.unreadable:
        raise click.ClickException(
            "Some secrets cannot be decrypted: add the keys that encrypted them to the end of"
            " ARKLOOP_ENCRYPTION_KEY and repeat this. If they are lost for good:"
            " docs/how-to/operations.md"
        )


@click.command("erase-encryption")
@database_url_option
@_encryption_key_option
@org_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def erase_encryption(database_url: str, ring: Keyring, org: str, yes: bool) -> None:
    """Delete the key of an organization, and with it all secrets that it has stored.

    Dumps of the database from before still have the key.
    """
    with database(database_url) as connections:
        with connections.reading() as sql:
            org_id = find_org(sql, org)
        if not yes:
            click.confirm(f"Erase all stored secrets of {org_id}?", abort=True)
        # What is older than the key would survive it.
        left = _reseal(connections, ring, org_id).unreadable_old
        if left:
            raise click.ClickException(
                f"{left} secrets are under other keys, which would survive: give these keys, too."
            )
        with connections.transaction() as tx:
            is_erased = org_keys.erase(tx, org_id)
            if is_erased:
                record(tx, org_id, "org_key.erased", "org", org_id)
    print_line("erased" if is_erased else "the organization has stored no secrets")


def _reseal(connections: Connections, ring: Keyring, of_org: UUID | None = None) -> Counts:
    total = Counts()
    for column in COLUMNS:
        counts = reseal(connections, column, ring, of_org=of_org)
        total.add(counts)
        if counts.unreadable:
            print_line(f"{column.name}: {counts.unreadable} cannot be decrypted", err=True)
    return total
