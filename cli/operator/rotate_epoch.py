"""`arkloop rotate-epoch`: after a restore of Postgres, leave alone what Redis has."""

import click

from arkloop.cli.operator.database import database, database_url_option
from arkloop.cli.output import print_line
from arkloop.shared.storage import rewinds


@click.command("rotate-epoch")
@database_url_option
def rotate_epoch(database_url: str) -> None:
    """Make all processes ignore what Redis holds, after a restore: not every one is detected.

    Running processes use the new epoch within a sweep. Where Postgres hides its log (Amazon
    Aurora), restart them.
    """
    with database(database_url) as connections:
        with connections.transaction() as tx:
            rewinds.rotate(tx.sql)
        print_line(
            "Started a new epoch. Running processes use it within a sweep; where Postgres hides its"
            " log (Amazon Aurora), restart them."
        )
