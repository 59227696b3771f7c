"""Columns with encrypted secrets, and their encryption under another key."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    FromClause,
    LargeBinary,
    select,
    tuple_,
    update,
)

from arkloop.shared.sealing import org_keys
from arkloop.shared.security.encryption import (
    CannotOpen,
    Keyring,
    NoEncryptionKey,
    is_of_org_key,
)
from arkloop.shared.storage.connections import Connections

_BATCH = 100


@dataclass(frozen=True, slots=True, eq=False)
class SealedColumn:
    """A column whose values were sealed with this purpose.

    Its table has the org in each row, or its `source` has it, which joins the table to others.
    """

    column: Column[bytes]
    purpose: str
    org_id: ColumnElement[Any]
    source: FromClause

    @property
    def name(self) -> str:
        return f"{self.column.table.name}.{self.column.name}"


@dataclass(slots=True)
class Counts:
    """Values of one or several columns, by what has become of them."""

    resealed: int = 0
    up_to_date: int = 0  # under the key of their org already
    erased: int = 0  # under a key of their org that was erased
    unreadable: int = 0  # under a key that is not there, or damaged, or the key of the org is
    unreadable_old: int = 0  # of these, older than the key of their org

    def add(self, other: "Counts") -> None:
        self.resealed += other.resealed
        self.up_to_date += other.up_to_date
        self.erased += other.erased
        self.unreadable += other.unreadable
        self.unreadable_old += other.unreadable_old


def reseal(
    connections: Connections, sealed: SealedColumn, keyring: Keyring, *, of_org: UUID | None = None
) -> Counts:
    """Encrypt the column's values, by default those of all orgs, under the keys of their orgs, row
    by row.

    It may be stopped at any moment and started again. A value that is replaced meanwhile stays as
    it was replaced; the next call looks at it.

    Raises:
        NoEncryptionKey, Unavailable
    """
    counts = Counts()
    key = list(sealed.column.table.primary_key)
    for row in _rows(connections, sealed, of_org):
        *values, org_id, wrapped, before = row
        bound = {"org_id": org_id, "purpose": sealed.purpose}
        try:
            if is_of_org_key(before):
                org_key = org_keys.unwrapped(keyring, wrapped, org_id) if wrapped else None
                is_its = org_key is not None and org_key.is_up_to_date(before)
                counts.up_to_date += is_its
                counts.erased += not is_its
                continue
            text = keyring.open(before, **bound)
        except CannotOpen:
            counts.unreadable += 1
            counts.unreadable_old += not is_of_org_key(before)
            continue
        is_it = [column == value for column, value in zip(key, values, strict=True)]
        statement = update(sealed.column.table).where(*is_it, sealed.column == before)
        try:
            with connections.transaction() as tx:
                after = org_keys.seal(tx, keyring, text, **bound)
                tx.sql.execute(statement.values({sealed.column.name: after}))
        except NoEncryptionKey:
            # Readable, but the key of its org is not.
            counts.unreadable += 1
            counts.unreadable_old += 1
            continue
        counts.resealed += 1
    return counts


def older_than_org_key(sql: Connection, sealed: SealedColumn, org_id: UUID) -> list[bytes]:
    """Return the org's values of the column that a key of the setting itself has encrypted."""
    query = select(sealed.column).select_from(sealed.source)
    found = sql.scalars(query.where(sealed.org_id == org_id, sealed.column.is_not(None)))
    return [value for value in found if not is_of_org_key(value)]


def column_of(table: Any, name: str, purpose: str) -> SealedColumn:
    """Describe a column of a table that has `org_id`."""
    column = table.c[name]
    assert isinstance(column.type, LargeBinary)
    return SealedColumn(column, purpose, table.c.org_id, table)


def _rows(
    connections: Connections, sealed: SealedColumn, of_org: UUID | None
) -> Iterator[Sequence[Any]]:
    """Yield primary key, org, its key and the value of each row that has one, batch by batch."""
    key = list(sealed.column.table.primary_key)
    query = (
        select(*key, sealed.org_id, org_keys.wrapped_key(sealed.org_id), sealed.column)
        .select_from(sealed.source)
        .where(sealed.column.is_not(None))
        .order_by(*key)
        .limit(_BATCH)
    )
    if of_org is not None:
        query = query.where(sealed.org_id == of_org)
    batch = query
    while True:
        with connections.reading() as sql:
            rows: Sequence[Sequence[Any]] = sql.execute(batch).all()
        yield from rows
        if len(rows) < _BATCH:
            return
        batch = query.where(tuple_(*key) > tuple_(*rows[-1][: len(key)]))
