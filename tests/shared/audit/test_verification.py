"""The first broken entry of an audit log is found, whatever was done to it."""

from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

import pytest
from sqlalchemy import Connection, event, select, text
from sqlalchemy.exc import IntegrityError

from arkloop.shared.audit import audit_log, verification
from arkloop.shared.audit.audit_log import OPERATOR, NewEntry
from arkloop.shared.audit.chain import GENESIS, Head, contents, hash_of
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.audit import audit_entries
from tests import walls

ENTRIES = 5


@pytest.fixture
def org_id(connections: Connections) -> UUID:
    """An org with five entries."""
    org_id = new_id()
    for number in range(ENTRIES):
        entry = NewEntry(
            org_id=org_id, action="api_key.created", by=OPERATOR, details={"number": number}
        )
        with connections.transaction() as tx:
            audit_log.append(tx, entry)
    return org_id


def tamper(connections: Connections, change: Callable[[Connection], object]) -> None:
    """Make a change as somebody can who owns the tables."""
    with walls.owner(connections.settings.database_url) as engine, engine.begin() as sql:
        sql.execute(text("SET LOCAL session_replication_role = replica"))
        change(sql)


def rewrite(sql: Connection, org_id: UUID) -> None:
    """Change the second entry, and all hashes so that they fit again."""
    hash_ = GENESIS
    rows = sql.execute(
        select(audit_entries).where(audit_entries.c.org_id == org_id).order_by(audit_entries.c.seq)
    ).all()
    for row in rows:
        fields = {**row._mapping, "prev_hash": hash_}
        if row.seq == 2:
            fields["action"] = "api_key.revoked"
        hash_ = hash_of(contents(fields))
        sql.execute(
            audit_entries.update()
            .where(audit_entries.c.org_id == org_id, audit_entries.c.seq == row.seq)
            .values(action=fields["action"], prev_hash=fields["prev_hash"], hash=hash_)
        )
    sql.execute(
        text("UPDATE audit_heads SET hash = :hash WHERE org_id = :org"),
        {"hash": hash_, "org": org_id},
    )


@pytest.mark.parametrize(
    ("statement", "seq", "why"),
    [
        ("UPDATE audit_entries SET action = 'auth.logged_in' WHERE seq = 2", 2, "was changed"),
        ("UPDATE audit_entries SET details = '{}' WHERE seq = 3", 3, "was changed"),
        ("UPDATE audit_entries SET ip = '192.0.2.1' WHERE seq = 5", 5, "was changed"),
        ("UPDATE audit_entries SET created_at = now() WHERE seq = 1", 1, "was changed"),
        ("UPDATE audit_entries SET prev_hash = hash WHERE seq = 4", 4, "does not follow"),
        ("DELETE FROM audit_entries WHERE seq = 1", 1, "missing"),
        ("DELETE FROM audit_entries WHERE seq = 3", 3, "missing"),
        ("DELETE FROM audit_entries WHERE seq = 5", 5, "missing"),
        ("DELETE FROM audit_entries WHERE seq > 0", 1, "missing"),
    ],
)
def test_the_first_broken_entry_is_named(
    connections: Connections, org_id: UUID, statement: str, seq: int, why: str
) -> None:
    """A change, a gap and a cut end are each found at the entry where they begin."""
    tamper(connections, lambda sql: sql.execute(text(f"{statement} AND org_id = '{org_id}'")))

    broken = verification.verify(connections, org_id).broken

    assert broken is not None
    assert seq == broken.seq
    assert broken.why.startswith(why)


def test_a_chain_that_was_written_anew_does_not_fit_an_earlier_head(
    connections: Connections, org_id: UUID
) -> None:
    """An owner of the tables can make a new chain, but not one with a head that was kept."""
    with connections.reading() as sql:
        kept = audit_log.head(sql, org_id)

    tamper(connections, lambda sql: rewrite(sql, org_id))

    alone = verification.verify(connections, org_id)
    against_head = verification.verify(connections, org_id, kept)
    assert (ENTRIES, None) == (alone.checked, alone.broken)
    assert against_head.broken is not None
    assert ENTRIES == against_head.broken.seq


def test_a_chain_that_was_cut_is_shorter_than_an_earlier_head(
    connections: Connections, org_id: UUID
) -> None:
    """The last entries can vanish together with the head, but not where the head was kept."""
    with connections.reading() as sql:
        kept = audit_log.head(sql, org_id)

    def cut(sql: Connection) -> None:
        where = f"org_id = '{org_id}'"
        sql.execute(text(f"DELETE FROM audit_entries WHERE seq > 3 AND {where}"))
        sql.execute(
            text(
                "UPDATE audit_heads h SET seq = 3, hash = e.hash FROM audit_entries e"
                f" WHERE e.seq = 3 AND e.org_id = h.org_id AND h.{where}"
            )
        )

    tamper(connections, cut)

    assert None is verification.verify(connections, org_id).broken
    broken = verification.verify(connections, org_id, kept).broken
    assert broken is not None
    assert 4 == broken.seq


def prune(connections: Connections, org_id: UUID, *, keep: int) -> int:
    """Prune all but the newest entries; they get times that are days apart."""

    def age(sql: Connection) -> None:
        hash_ = GENESIS
        query = select(audit_entries).where(audit_entries.c.org_id == org_id)
        for row in sql.execute(query.order_by(audit_entries.c.seq)).all():
            moment = datetime(2026, 1, row.seq, tzinfo=UTC)
            fields = {**row._mapping, "created_at": moment, "prev_hash": hash_}
            hash_ = hash_of(contents(fields))
            changes = {"created_at": moment, "prev_hash": fields["prev_hash"], "hash": hash_}
            is_it = (audit_entries.c.org_id == org_id) & (audit_entries.c.seq == row.seq)
            sql.execute(audit_entries.update().where(is_it).values(changes))
        head = {"hash": hash_, "org": org_id}
        sql.execute(text("UPDATE audit_heads SET hash = :hash WHERE org_id = :org"), head)

    tamper(connections, age)
    with connections.transaction() as tx:
        return audit_log.prune(tx, org_id, datetime(2026, 1, ENTRIES - keep + 1, tzinfo=UTC))


def test_a_pruned_chain_is_good(connections: Connections, org_id: UUID) -> None:
    """The rest is a chain, and an entry says what is gone; heads of what is left still fit."""
    assert 3 == prune(connections, org_id, keep=2)

    with connections.reading() as sql:
        rows = audit_log.list_(sql, org_id, {}, limit=9, before=None)
        assert [6, 5, 4] == [row.seq for row in rows]
        assert "audit.pruned" == rows[0].action
        assert (3, 3) == (rows[0].details["through_seq"], rows[0].details["entries"])
    verdict = verification.verify(connections, org_id)
    assert (3, None) == (verdict.checked, verdict.broken)
    for head in (Head(rows[0].seq, rows[0].hash), Head(3, rows[2].prev_hash)):
        assert None is verification.verify(connections, org_id, head).broken
    before = verification.verify(connections, org_id, Head(2, "0" * 64)).broken
    assert before is not None
    assert (2, True) == (before.seq, before.why.startswith("was pruned"))


def test_entries_that_vanish_beside_a_pruning_are_missed(
    connections: Connections, org_id: UUID
) -> None:
    """What was pruned is known by its last number and hash, so that one more cannot go with it."""
    prune(connections, org_id, keep=2)
    where = f"org_id = '{org_id}'"
    tamper(
        connections,
        lambda sql: sql.execute(text(f"DELETE FROM audit_entries WHERE seq = 4 AND {where}")),
    )

    broken = verification.verify(connections, org_id).broken
    assert broken is not None
    assert broken.why.startswith("missing")


def test_nothing_is_pruned_that_is_newer(connections: Connections, org_id: UUID) -> None:
    """There is no entry about a pruning either."""
    with connections.transaction() as tx:
        assert 0 == audit_log.prune(tx, org_id, datetime(2026, 1, 1, tzinfo=UTC))
    with connections.reading() as sql:
        assert ENTRIES == audit_log.head(sql, org_id).seq


def test_a_pruning_opens_the_table_for_itself_alone(connections: Connections, org_id: UUID) -> None:
    """The rest of its transaction cannot delete entries."""
    with pytest.raises(IntegrityError, match="append-only"), connections.transaction() as tx:
        audit_log.prune(tx, org_id, datetime(9000, 1, 1, tzinfo=UTC))
        tx.sql.execute(text(f"DELETE FROM audit_entries WHERE org_id = '{org_id}'"))


def test_a_chain_fits_its_earlier_heads(connections: Connections, org_id: UUID) -> None:
    """A head stays good for ever, also after more entries; that before the first is good, too."""
    with connections.reading() as sql:
        rows = audit_log.list_(sql, org_id, {}, limit=ENTRIES, before=None)
    for head in [Head(0, GENESIS), *(Head(row.seq, row.hash) for row in rows)]:
        assert None is verification.verify(connections, org_id, head).broken


def test_entries_that_are_pruned_during_the_check_are_no_break(
    connections: Connections, org_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left is checked again, from its beginning."""
    monkeypatch.setattr(verification, "_PAGE", 2)
    statements = iter(range(100))

    def prune(*_: object) -> None:
        if next(statements) == 2:  # the oldest, the head, and now a first page
            with connections.transaction() as tx:
                tx.sql.execute(text("SET LOCAL arkloop.audit_prune = 'on'"))
                rows = audit_entries.c.org_id == org_id
                oldest = rows & (audit_entries.c.seq <= 3)
                hash_ = select(audit_entries.c.hash).where(rows, audit_entries.c.seq == 3)
                through = {"through_seq": 3, "through_hash": tx.sql.scalar(hash_)}
                tx.sql.execute(audit_entries.delete().where(oldest))
                pruned = {"action": audit_log.PRUNED, "details": through}
                audit_log.append(tx, NewEntry(org_id=org_id, by=OPERATOR, **pruned))

    event.listen(connections.engine, "after_cursor_execute", prune)
    verdict = verification.verify(connections, org_id)
    event.remove(connections.engine, "after_cursor_execute", prune)

    assert (3, None) == (verdict.checked, verdict.broken)


def test_each_page_is_read_by_a_connection_of_its_own(
    connections: Connections, org_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a pooler, one for the whole check would be a transaction beyond its time limit."""
    monkeypatch.setattr(verification, "_PAGE", 1)
    lent = []

    def lend(*_: object) -> None:
        lent.append(1)

    event.listen(connections.engine, "checkout", lend)
    verdict = verification.verify(connections, org_id)
    event.remove(connections.engine, "checkout", lend)

    assert ENTRIES == verdict.checked
    assert ENTRIES < len(lent)
