"""The check of an org's audit log: entry by entry, from the oldest that is kept to the head."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, select

from arkloop.shared.audit import audit_log
from arkloop.shared.audit.chain import GENESIS, Head, contents, hash_of
from arkloop.shared.storage.tables.audit import audit_entries, audit_heads

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Break:
    """The first entry that is not as it was appended, and why."""

    seq: int
    why: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The number of entries that were checked, the last of them, and where the chain breaks."""

    checked: int
    head: Head
    broken: Break | None


def orgs(sql: Connection) -> list[UUID]:
    """List the orgs that have entries, by id."""
    return list(sql.scalars(select(audit_heads.c.org_id).order_by(audit_heads.c.org_id)))


def verify(sql: Connection, org_id: UUID, earlier: Head | None = None) -> Verdict:
    """Check the org's chain; `earlier` is a head of it that was taken down before."""
    newest = audit_log.head(sql, org_id)
    last = Head(0, GENESIS)
    checked = 0
    for row in _entries(sql, org_id, newest.seq):
        if (why := _problem(row, last, earlier)) is not None:
            return Verdict(checked, last, Break(last.seq + 1, why))
        last = Head(row.seq, row.hash)
        checked += 1
    broken = None
    if last != newest:
        broken = Break(last.seq + 1, "missing: the chain has had more entries")
    elif earlier is not None and earlier.seq > last.seq:
        broken = Break(last.seq + 1, "missing: the given head is of a later entry")
    return Verdict(checked, last, broken)


def _problem(row: Row[Any], last: Head, earlier: Head | None) -> str | None:
    if row.seq != last.seq + 1:
        return "missing"
    if row.prev_hash != last.hash:
        return "does not follow the entry before it"
    if row.hash != hash_of(contents(row)):
        return "was changed: its hash is not that of its content"
    if earlier is not None and row.seq == earlier.seq and row.hash != earlier.hash:
        return "is not the entry of the given head: the chain was written anew"
    return None


def _entries(sql: Connection, org_id: UUID, last_seq: int) -> Iterator[Row[Any]]:
    """Yield the entries up to `last_seq` in order; those appended meanwhile are left out."""
    seq = 0
    while True:
        page = sql.execute(
            select(audit_entries)
            .where(
                audit_entries.c.org_id == org_id,
                audit_entries.c.seq > seq,
                audit_entries.c.seq <= last_seq,
            )
            .order_by(audit_entries.c.seq)
            .limit(_PAGE)
        ).all()
        if not page:
            return
        yield from page
        seq = page[-1].seq
