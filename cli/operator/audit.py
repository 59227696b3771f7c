"""`arkloop audit`: check and prune the audit logs of orgs, straight in the database."""

import re
from datetime import UTC, datetime

import click

from arkloop.cli.listing import print_fields
from arkloop.cli.operator.database import database, database_url_option, find_org, org_option
from arkloop.cli.output import print_line
from arkloop.shared.audit import audit_log, verification
from arkloop.shared.audit.chain import Head

_HEAD = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})")


@click.group()
def audit() -> None:
    """Check and prune the audit logs of organizations; no server is needed."""


@audit.command()
@database_url_option
@org_option
def head(database_url: str, org: str) -> None:
    """Print the head of an organization's log as SEQ:HASH, for somebody else to keep."""
    with database(database_url) as connections, connections.reading() as sql:
        found = audit_log.head(sql, find_org(sql, org))
    print_line(f"{found.seq}:{found.hash}")


@audit.command()
@database_url_option
@org_option
@click.option(
    "--before",
    type=click.DateTime(["%Y-%m-%d"]),
    required=True,
    help="Day (UTC) from which on entries are kept.",
)
def prune(database_url: str, org: str, before: datetime) -> None:
    """Delete an organization's entries from before a day and print how many.

    The log says so itself, in entries of the action `audit.pruned`.
    """
    count = 0
    with database(database_url) as connections:
        with connections.reading() as sql:
            org_id = find_org(sql, org)
        while True:
            with connections.transaction() as tx:
                pruned = audit_log.prune(tx, org_id, before.replace(tzinfo=UTC))
            count += pruned
            if pruned < audit_log.PRUNED_AT_ONCE:
                break
    print_line(count)


@audit.command()
@database_url_option
@click.option("--org", "org", help="Id or slug of the organization.  [default: all]")
@click.option("--head", "text", help="A head that `arkloop audit head` or the API gave, SEQ:HASH.")
def verify(database_url: str, org: str | None, text: str | None) -> None:
    """Check that no entry is missing or was changed; status 1 if one is.

    A line has the organization's id, the number of entries checked, and `ok`, or the first entry
    that is wrong and why.
    """
    earlier = _head(text)
    if earlier is not None and org is None:
        raise click.UsageError("--head requires --org")
    is_broken = False
    with database(database_url) as connections:
        with connections.reading() as sql:
            org_ids = verification.orgs(sql) if org is None else [find_org(sql, org)]
        for org_id in org_ids:
            verdict = verification.verify(connections, org_id, earlier)
            result = "ok"
            if verdict.broken is not None:
                is_broken = True
                result = f"entry {verdict.broken.seq}: {verdict.broken.why}"
            print_fields(str(org_id), verdict.checked, result)
    if is_broken:
        raise click.ClickException("The audit log is not as it was written.")


def _head(text: str | None) -> Head | None:
    if text is None:
        return None
    match = _HEAD.fullmatch(text.strip())
    if match is None:
        raise click.UsageError("--head: must be SEQ:HASH, with 64 hexadecimal digits")
    return Head(int(match[1]), match[2])
