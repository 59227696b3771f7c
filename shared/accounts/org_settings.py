"""Settings of single orgs by the operator: limits other than those of all, and a weight."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, select
from sqlalchemy.dialects.postgresql import insert as upsert

from arkloop.shared.config import Settings
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.org_limits import LIMITS, MOST, MOST_WEIGHT, WEIGHT, OrgLimits
from arkloop.shared.storage import org_locks
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.accounts import org_settings, orgs

#: What can be set: each limit, None for that of all orgs; and the weight, None for 1.
NAMES = (*LIMITS, WEIGHT)
_COLUMNS = [org_settings.c[name] for name in NAMES]


def limits_of(sql: Connection, settings: Settings, org_id: UUID) -> OrgLimits:
    """Return what applies to an org."""
    own = own_of(sql, org_id)
    if all(value is None for value in own.values()):
        return OrgLimits.of_settings(settings)
    of_all = {name: getattr(settings, name) for name in LIMITS}
    return OrgLimits(**(of_all | {name: n for name, n in own.items() if n is not None}))


def own_of(sql: Connection, org_id: UUID) -> dict[str, int | None]:
    """Return what is set for an org; None is not set."""
    row = sql.execute(select(*_COLUMNS).where(org_settings.c.org_id == org_id)).one_or_none()
    return dict.fromkeys(NAMES) if row is None else dict(row._mapping)


def list_(sql: Connection) -> list[Row[Any]]:
    """List the orgs for which something is set, and those that are suspended, by id.

    With their `slug`, `name` and `public_url`, and since when they are suspended.
    """
    return [
        *sql.execute(
            select(
                orgs.c.id.label("org_id"),
                *(orgs.c.slug, orgs.c.name, orgs.c.suspended_at, orgs.c.public_url),
                *_COLUMNS,
            )
            .outerjoin(org_settings, orgs.c.id == org_settings.c.org_id)
            .where(
                org_settings.c.org_id.is_not(None)
                | orgs.c.suspended_at.is_not(None)
                | orgs.c.public_url.is_not(None)
            )
            .order_by(orgs.c.id)
        )
    ]


def change(
    tx: Transaction, org_id: UUID, values: Mapping[str, int | None]
) -> dict[str, int | None]:
    """Set these of `NAMES`; the others stay. Returns those that have changed, with new values.

    Raises:
        InvalidRequest: a value is out of its range.
    """
    if problems := {name: why for name, n in values.items() if (why := _problem_of(name, n))}:
        raise InvalidRequest(**problems)
    # The lock: two changes at once would each record what the other one has replaced.
    org_locks.lock(tx, org_id)
    before = own_of(tx.sql, org_id)
    changed = {name: value for name, value in values.items() if value != before[name]}
    if all(value is None for value in (before | changed).values()):
        tx.sql.execute(org_settings.delete().where(org_settings.c.org_id == org_id))
    elif changed:
        new = upsert(org_settings).values(org_id=org_id, **changed)
        tx.sql.execute(new.on_conflict_do_update(index_elements=["org_id"], set_=changed))
    return changed


def _problem_of(name: str, value: int | None) -> list[str] | None:
    least, most = (1, MOST_WEIGHT) if name == WEIGHT else (0, MOST)
    if value is None or least <= value <= most:
        return None
    return [f"must be between {least} and {most:,}"]
