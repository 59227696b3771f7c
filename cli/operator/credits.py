"""`arkloop credits`: what an org has paid in advance, straight in the database."""

import click

from arkloop.cli.operator.database import (
    database,
    database_url_option,
    find_org,
    org_option,
    record,
)
from arkloop.cli.output import print_json, print_line
from arkloop.shared.billing import credits as ledger
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.runs import moved_orgs
from arkloop.shared.runs.moved_orgs import OrgMoved
from arkloop.shared.storage.postgres import COMMAND_TIMEOUTS


@click.group()
def credits() -> None:
    """Grant prepaid credits to organizations and show balances; no server is needed."""


@credits.command()
@database_url_option
@org_option
@click.option(
    "--credits", "amount", type=int, required=True, help=("A negative number takes credits back.")
)
@click.option("--note", help="Note to store in the ledger.")
def grant(database_url: str, org: str, amount: int, note: str | None) -> None:
    """Grant credits and print the new balance.

    From its first grant on an organization is prepaid: without credits its runs are refused.
    """
    with database(database_url) as connections, connections.transaction() as tx:
        org_id = find_org(tx.sql, org)
        try:
            moved_orgs.check(tx, org_id)
            ledger.grant(tx, org_id, amount, note)
            record(tx, org_id, "credits.granted", "org", org_id, credits=amount)
        except InvalidRequest as error:
            problems = [f"--{name}: {why[0]}" for name, why in error.details.items()]
            raise click.ClickException("\n".join(problems)) from None
        except OrgMoved as error:
            raise click.ClickException(
                f"It was copied to another cell, whose epoch is {error.details['moved_to']}:"
                " grant credits there, once it is resumed."
            ) from None
        has = ledger.balance(tx.sql, org_id)
    print_line(has.balance)


@credits.command()
@database_url_option
@org_option
def show(database_url: str, org: str) -> None:
    """Print the balance, what runs have reserved of it, and the accounts of the ledger, as JSON."""
    with database(database_url, COMMAND_TIMEOUTS) as connections, connections.reading() as sql:
        org_id = find_org(sql, org)
        has = ledger.balance(sql, org_id)
        accounts = ledger.accounts(sql, org_id)
    shown = {
        "org_id": str(org_id),
        "balance": has.balance,
        "held": has.held,
        "is_prepaid": has.balance is not None,
        "accounts": accounts,
    }
    print_json(shown)


@credits.command()
@database_url_option
def check(database_url: str) -> None:
    """Check that each balance is the sum of its ledger; a mismatch is printed, with status 1.

    The line has the organization's id, its balance and the sum, in credits.
    """
    with database(database_url, COMMAND_TIMEOUTS) as connections, connections.reading() as sql:
        wrong = ledger.check(sql)
    for org_id, balance, total in wrong:
        print_line(f"{org_id}  {balance}  {total}")
    if wrong:
        raise click.ClickException("The ledger is the truth: see docs/money.md.")
    print_line("ok")
