"""`arkloop credits`: what an org has paid in advance, straight in the database."""

from uuid import UUID

import click

from arkloop.cli.listing import print_fields
from arkloop.cli.operator.database import (
    Unanswered,
    database,
    database_url_option,
    find_org,
    org_option,
    record,
)
from arkloop.cli.output import print_json, print_line
from arkloop.shared.billing import credits as ledger
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.ids import new_id
from arkloop.shared.runs import moved_orgs
from arkloop.shared.runs.moved_orgs import OrgMoved
from arkloop.shared.storage import postgres
from arkloop.shared.storage.connections import Transaction
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
    entry_id, written = new_id(), ""
    try:
        with database(database_url) as connections, connections.transaction() as tx:
            has = _grant(tx, org, amount, note, entry_id)
            written = postgres.transaction_id(tx.sql)
    except Unanswered as error:
        if not written:
            raise  # the transaction was never committed
        has = _look_for(database_url, org, entry_id, written, error.reason)
    print_line(has.balance)


def _grant(
    tx: Transaction, org: str, amount: int, note: str | None, entry_id: UUID
) -> ledger.Balance:
    org_id = find_org(tx.sql, org)
    try:
        moved_orgs.check(tx, org_id)
        ledger.grant(tx, org_id, amount, note, entry_id=entry_id)
        record(tx, org_id, "credits.granted", "org", org_id, credits=amount)
    except InvalidRequest as error:
        problems = [f"--{name}: {why[0]}" for name, why in error.details.items()]
        raise click.ClickException("\n".join(problems)) from None
    except OrgMoved as error:
        raise click.ClickException(
            f"It was copied to another cell, whose epoch is {error.details['moved_to']}:"
            " grant credits there, once it is resumed."
        ) from None
    return ledger.balance(tx.sql, org_id)


def _look_for(
    database_url: str, org: str, entry_id: UUID, transaction_id: str, reason: str
) -> ledger.Balance:
    """Return the balance with the grant whose commit was not answered, over a new connection.

    Raises:
        ClickException: the grant was not entered, or nobody can say yet whether it is.
    """
    try:
        with database(database_url) as connections, connections.reading() as sql:
            # In this order: what an ended transaction has written is found from then on.
            has_ended = postgres.has_ended(sql, transaction_id)
            if ledger.is_entered(sql, entry_id):
                return ledger.balance(sql, find_org(sql, org))
    except Unanswered as error:
        has_ended, reason = False, error.reason
    if has_ended:
        raise click.ClickException(f"Nothing was granted: the commit failed ({reason}).")
    raise click.ClickException(
        f"The database did not answer the commit ({reason}): the credits may be granted, now or"
        " as soon as it works again. Wait until it accepts writes, and compare the balance that"
        " `arkloop credits show` prints, before you repeat the command."
    )


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
        print_fields(str(org_id), balance, total)
    if wrong:
        raise click.ClickException("The ledger is the truth: see docs/money.md.")
    print_line("ok")
