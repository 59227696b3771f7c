"""`arkloop end-users`: what an org's customers have a right to, directly in the database."""

import click

from arkloop.cli.operator.database import (
    database,
    database_url_option,
    find_org,
    lease_option,
    org_option,
    without_notifications,
)
from arkloop.cli.operator.erasure import confirmed, print_export, print_record, yes_option
from arkloop.shared.accounts import erasure
from arkloop.shared.storage.postgres import COMMAND_TIMEOUTS


@click.group("end-users")
def end_users() -> None:
    """Copy out or erase end users of an organization, directly in the database."""


@end_users.command()
@database_url_option
@org_option
@click.argument("end_user_id")
def export(database_url: str, org: str, end_user_id: str) -> None:
    """Print threads, messages, runs and files of an end user, each as a line of JSON."""
    with database(database_url, COMMAND_TIMEOUTS) as connections:
        with connections.reading() as sql:
            org_id = find_org(sql, org)
        print_export(erasure.export_end_user(connections, org_id, end_user_id))


@end_users.command()
@database_url_option
@lease_option
@org_option
@yes_option
@click.argument("end_user_id")
def erase(database_url: str, lease_seconds: float, org: str, yes: bool, end_user_id: str) -> None:
    """Erase all that there is of an end user, and print the record of it as JSON.

    Active runs are cancelled first. Stop issuing client tokens for the end user before.
    """
    with without_notifications(database_url, lease_seconds=lease_seconds) as connections:
        with connections.reading() as sql:
            org_id = find_org(sql, org)
        confirmed(f"the end user {end_user_id!r}", yes)
        print_record(lambda: erasure.erase_end_user(connections, org_id, end_user_id))
