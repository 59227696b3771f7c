"""The public URL of one org, where the operator has given it one in place of that of all.

Its people are sent back there with the codes of their logins: nobody else sets it.
"""

from typing import Any
from uuid import UUID

from sqlalchemy import Connection, ScalarSelect, select, update

from arkloop.shared import origins
from arkloop.shared.config import Settings
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.accounts import orgs


def own(org_id: Any) -> ScalarSelect[Any]:
    """Build SQL: the public URL of an org, null if it has none of its own."""
    return select(orgs.c.public_url).where(orgs.c.id == org_id).scalar_subquery()


def find(sql: Connection, org_id: UUID) -> str | None:
    """Return the public URL of an org, None if it has none of its own."""
    url: str | None = sql.scalar(select(own(org_id)))
    return url


def address(settings: Settings, own_url: str | None, path: str) -> str | None:
    """Return the address of a path for the people of an org, None without any public URL."""
    origin = own_url or settings.public_url
    return None if origin is None else origin + (settings.path_prefix or "") + path


def change(tx: Transaction, org_id: UUID, url: str | None) -> dict[str, str | None]:
    """Set the public URL of an org; None takes it back. Returns it, if it was another one.

    Raises:
        InvalidRequest: it is no origin, or without TLS.
    """
    if url is not None and (why := origins.problem_of_public_url(url)):
        raise InvalidRequest(public_url=[why])
    is_new = orgs.c.public_url.is_distinct_from(url)
    changed = update(orgs).where(orgs.c.id == org_id, is_new).values(public_url=url)
    return {} if tx.sql.scalar(changed.returning(orgs.c.id)) is None else {"public_url": url}
