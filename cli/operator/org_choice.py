"""The org that a command's `--org` names: by id or slug, never by a name that anybody may take."""

from uuid import UUID

import click
from sqlalchemy import Connection

from shared.accounts import accounts

_SHOWN_IDS = 10

org_option = click.option("--org", "org", required=True, help="Id or slug of the organization.")


def find_org(sql: Connection, id_or_slug: str, *, advice: str = "") -> UUID:
    """Return the org's id.

    Raises:
        ClickException: there is no such org. The message lists those of this name; `advice` is
            what else to do.
    """
    org_id = accounts.find_org(sql, id_or_slug)
    if org_id is not None:
        return org_id
    problem = f"No organization has the id or slug {id_or_slug!r}."
    if named := accounts.orgs_named(sql, id_or_slug):
        ids = "\n".join(f"  {org_id}" for org_id in named[:_SHOWN_IDS])
        problem += (
            " Names are not unique. Orgs of this name, oldest first (`arkloop users list` shows"
            f" their members):\n{ids}"
        )
    raise click.ClickException(f"{problem}\n{advice}".rstrip())
