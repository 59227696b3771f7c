"""The check of an org's audit log: entry by entry, from the oldest that is kept to the head."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, func, select

from arkloop.shared.audit import audit_log
from arkloop.shared.audit.chain import GENESIS, Head, contents, hash_of
from arkloop.shared.storage.connections import Connections
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


def verify(connections: Connections, org_id: UUID, earlier: Head | None = None) -> Verdict:
    """Check the org's chain; `earlier` is a head of it that was taken down before.

    If entries are pruned meanwhile, it is checked again.
    """
    while True:
        oldest = _oldest(connections, org_id)
        verdict = _verify(connections, org_id, earlier)
        if verdict.broken is None or oldest == _oldest(connections, org_id):
            return verdict


def _oldest(connections: Connections, org_id: UUID) -> int | None:
    of_org = audit_entries.c.org_id == org_id
    with connections.reading() as sql:
        oldest: int | None = sql.scalar(select(func.min(audit_entries.c.seq)).where(of_org))
    return oldest


def _verify(connections: Connections, org_id: UUID, earlier: Head | None) -> Verdict:
    with connections.reading() as sql:
        newest = audit_log.head(sql, org_id)
    start = last = Head(0, GENESIS)
    is_pruned = False
    checked = 0
    for row in _entries(connections, org_id, newest.seq):
        if checked == 0 and row.seq > 1:
            # Earlier ones were pruned, if an entry says so.
            start = last = Head(row.seq - 1, row.prev_hash)
        if (why := _problem(row, last, earlier)) is not None:
            return Verdict(checked, last, Break(last.seq + 1, why))
        is_pruned = is_pruned or _says_pruned(row, start)
        last = Head(row.seq, row.hash)
        checked += 1
    return Verdict(checked, last, _missing(start, last, newest, earlier, is_pruned=is_pruned))


def _missing(
    start: Head, last: Head, newest: Head, earlier: Head | None, *, is_pruned: bool
) -> Break | None:
    """Return what is wrong with a chain of good entries from after `start` to `last`."""
    if start.seq > 0 and not is_pruned:
        return Break(1, "missing, and no entry says that it was pruned")
    if last != newest:
        return Break(last.seq + 1, "missing: the chain has had more entries")
    if earlier is None:
        return None
    if earlier.seq > last.seq:
        return Break(last.seq + 1, "missing: the given head is of a later entry")
    if earlier.seq < start.seq or (earlier.seq == start.seq and earlier.hash != start.hash):
        return Break(earlier.seq, "was pruned, so that the given head cannot be compared")
    return None


def _says_pruned(row: Row[Any], start: Head) -> bool:
    through = (row.details.get("through_seq"), row.details.get("through_hash"))
    return row.action == audit_log.PRUNED and through == tuple(start)


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


def _entries(connections: Connections, org_id: UUID, last_seq: int) -> Iterator[Row[Any]]:
    """Yield the entries up to `last_seq` in order; those appended meanwhile are left out."""
    seq = 0
    while True:
        query = (
            select(audit_entries)
            .where(
                audit_entries.c.org_id == org_id,
                audit_entries.c.seq > seq,
                audit_entries.c.seq <= last_seq,
            )
            .order_by(audit_entries.c.seq)
            .limit(_PAGE)
        )
        # Through a pooler this is a transaction, which may last for seconds.
        with connections.reading() as sql:
            page = sql.execute(query).all()
        if not page:
            return
        yield from page
        seq = page[-1].seq
