"""An org with a row in each table that has rows of orgs, and what a cell has of it."""

import json
import secrets
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from click.testing import Result
from sqlalchemy import (
    ARRAY,
    Boolean,
    Column,
    Date,
    DateTime,
    Float,
    Integer,
    LargeBinary,
    Numeric,
    Table,
    Text,
    Uuid,
    insert,
)
from sqlalchemy.dialects.postgresql import JSON, JSONB

from arkloop.cli.operator.org_rows import tables
from arkloop.shared.ids import new_id
from arkloop.shared.security.encryption import keyring
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.tables import metadata

#: Calls `arkloop orgs` with these words.
Run = Callable[..., Result]

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
#: Tabs, newlines, backslashes and quotes: what the text of a COPY has to escape.
TEXT = 'a\ttab, a\nline, \\N and \\., "quotes", zwölf €, 🙂'

#: Where a value of the column's type is not enough. Rows of other tables are found by name.
_CHOSEN: dict[str, dict[str, Any]] = {
    "orgs": {
        "suspended_at": AT,
        "suspension_reason": "It moves.",
        "moved_to": None,
        "copy_began_at": None,
    },
    "credit_balances": {"balance": 100, "held": 1},
    "memberships": {"role": "owner"},
    "runs": {"state": "waiting", "agent": None, "cancel_requested_at": None, "ended_at": None},
    "ledger_entries": {"debit_account": "customer", "credit_account": "revenue"},
    "org_settings": {"weight": 3},
    "run_events": {"type": "run.completed", "payload": json.dumps({"data": {"text": TEXT}})},
    "threads": {"deleted_at": None, "parent_run_id": None},
    "webhook_endpoints": {"event_types": ["run.completed"]},
    "webhook_deliveries": {"state": "pending", "leased_until": None, "data": "{}"},
    "identity_providers": {"email_domains": ["example.com"]},
    "spending": {"scope": "org"},
}
_NAMED = {"org_id": "orgs", "run_id": "runs", "active_run_id": "runs", "user_id": "users"}
_NAMED |= {
    "created_by_user_id": "users",
    "thread_id": "threads",
    "endpoint_id": "webhook_endpoints",
}


def fill(tx: Transaction) -> UUID:
    """Insert an org that is suspended, with a row in each table; returns its id."""
    ids = {name: new_id() for name in metadata.tables}
    for placed in tables():
        table = metadata.tables[placed.name]
        values = {name: _value(table, name, ids) for name in placed.columns}
        if placed.name == "org_keys":
            ring = keyring(tx.connections.settings.encryption_key)
            key = secrets.token_hex(32)
            values["wrapped"] = ring.seal(key, org_id=ids["orgs"], purpose="org_keys.key")
        tx.sql.execute(insert(table).values(values))
    return ids["orgs"]


def _value(table: Table, name: str, ids: dict[str, UUID]) -> Any:
    chosen = _CHOSEN.get(table.name, {})
    if name in chosen:
        return chosen[name]
    column = table.columns[name]
    if isinstance(column.type, Uuid):
        for key in column.foreign_keys:
            return ids[key.column.table.name]
        return ids[_NAMED.get(name, table.name)]
    if isinstance(column.type, Text):
        return f"{ids['orgs']} {TEXT}"
    return _plain(column, ids)


def _plain(column: Column[Any], ids: dict[str, UUID]) -> Any:
    kind = column.type
    if isinstance(kind, Boolean):
        return True
    if isinstance(kind, ARRAY):
        return [TEXT, "b"]
    if isinstance(kind, JSON | JSONB):
        return {"text": TEXT, "n": 1.5}
    if isinstance(kind, LargeBinary):
        return b"\x02\x00\xff\\" + ids["orgs"].bytes
    if isinstance(kind, DateTime):
        return AT
    if isinstance(kind, Date):
        return date(2026, 1, 1)
    if isinstance(kind, Float):
        return 0.1
    if isinstance(kind, Numeric):
        return Decimal("1.5")
    assert isinstance(kind, Integer), f"{column}: what is a value of {kind}?"
    return 1


def environ(at: Connections, target: Connections) -> dict[str, str]:
    return {
        "ARKLOOP_DATABASE_URL": at.settings.database_url,
        "ARKLOOP_TARGET_DATABASE_URL": target.settings.database_url,
        "ARKLOOP_ENCRYPTION_KEY": at.settings.encryption_key or "",
    }


def contents(connections: Connections, org_id: UUID) -> dict[str, list[str]]:
    """Return the rows of an org by table, as text."""
    found = {}
    with connections.reading() as sql:
        for table in tables():
            rows = sql.exec_driver_sql(f"SELECT r::text FROM ({table.select(org_id)}) AS r")
            found[table.name] = sorted(rows.scalars())
    return found
