"""`arkloop keys rotate-encryption`: all stored secrets under the first encryption key."""

import click

from arkloop.cli.operator.database import database, database_url_option
from arkloop.cli.output import print_line
from arkloop.shared.catalog import sealed_columns as catalog
from arkloop.shared.delivery import endpoints
from arkloop.shared.sealing.sealed_columns import Counts, reseal
from arkloop.shared.security.encryption import keyring, split

COLUMNS = (*catalog.SEALED, *endpoints.SEALED)


@click.command("rotate-encryption")
@database_url_option
@click.option(
    "--encryption-key",
    envvar="ARKLOOP_ENCRYPTION_KEY",
    required=True,
    help="Keys with commas between; the first encrypts.  [default: $ARKLOOP_ENCRYPTION_KEY]",
)
def rotate_encryption(database_url: str, encryption_key: str) -> None:
    """Encrypt all stored secrets under the first of the encryption keys.

    It can run while the service does, and again after it was stopped. Status 1 if a secret cannot
    be decrypted by any of the keys; it stays as it is.
    """
    if any(len(key.encode()) < 32 for key in split(encryption_key)) or not split(encryption_key):
        raise click.UsageError("--encryption-key: each key must have at least 32 bytes")
    ring = keyring(encryption_key)
    total = Counts()
    with database(database_url) as connections:
        for column in COLUMNS:
            counts = reseal(connections, column, ring)
            total.add(counts)
            if counts.unreadable:
                print_line(f"{column.name}: {counts.unreadable} cannot be decrypted", err=True)
    print_line(f"{total.resealed} encrypted again, {total.up_to_date} already under the first key")
    if total.unreadable:
        raise click.ClickException(
            f"{total.unreadable} secrets are under other keys: keep those, or store the secrets"
            " again."
        )
