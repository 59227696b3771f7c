"""`arkloop rotate-epoch`: after a restore of Postgres, leave alone what Redis has."""

import click

from cli.database import database, database_url_option
from cli.output import print_line
from shared import rewinds


@click.command("rotate-epoch")
@database_url_option
def rotate_epoch(database_url: str) -> None:
    """Let no process read what Redis has so far; for restores that nothing else shows.

    Web and worker processes must be started (again) after it.
    """
    with database(database_url) as connections:
        with connections.transaction() as tx:
            rewinds.rotate(tx.sql)
        print_line("A new epoch begins. Start the web and worker processes again.")
