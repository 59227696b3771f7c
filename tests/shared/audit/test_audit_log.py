"""Appending to the audit log, and what the database refuses."""

from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from arkloop.shared.audit import audit_log, verification
from arkloop.shared.audit.audit_log import OPERATOR, NewEntry, Origin
from arkloop.shared.audit.chain import GENESIS, Head
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from tests.query_plans import noted
from tests.waiting import in_parallel


def append(connections: Connections, org_id: UUID, count: int = 1, **fields: object) -> None:
    for _ in range(count):
        entry = NewEntry(org_id=org_id, action="api_key.created", by=OPERATOR, **fields)
        with connections.transaction() as tx:
            audit_log.append(tx, entry)


def test_an_org_without_entries_has_an_empty_chain(connections: Connections) -> None:
    """Its head is the hash before the first entry."""
    with connections.reading() as sql:
        assert Head(0, GENESIS) == audit_log.head(sql, new_id())


def test_entries_that_come_at_once_are_one_chain(connections: Connections) -> None:
    """The first entry of an org, too, is appended once, and numbers have no gap."""
    org_id = new_id()

    in_parallel(8, lambda _: append(connections, org_id, 5))

    verdict = verification.verify(connections, org_id)
    with connections.reading() as sql:
        assert audit_log.head(sql, org_id) == verdict.head
    assert (40, None) == (verdict.checked, verdict.broken)


def test_an_append_is_one_statement(connections: Connections) -> None:
    """Other actions of the same org wait until it has committed."""
    org_id = new_id()
    append(connections, org_id)

    with noted(connections) as statements:
        append(connections, org_id)

    assert 1 == len(statements)


def test_entries_of_two_orgs_do_not_wait_for_each_other(connections: Connections) -> None:
    """A transaction may name its orgs in any order, as a reset of a password does."""
    orgs = [new_id(), new_id()]

    def record(number: int) -> None:
        for _ in range(20):
            with connections.transaction() as tx:
                for org_id in orgs[:: 1 if number % 2 else -1]:
                    entry = NewEntry(org_id=org_id, action="auth.password_reset", by=OPERATOR)
                    audit_log.record(tx, entry)

    in_parallel(4, record)

    with connections.reading() as sql:
        assert [80, 80] == [audit_log.head(sql, org_id).seq for org_id in orgs]


def test_what_clients_send_is_bounded_and_storable(connections: Connections) -> None:
    """A user agent or detail of any length and content is kept as far as it can be."""
    org_id = new_id()
    origin = Origin(ip="192.0.2.1", user_agent="a\0\n\ud800" + "ü" * 5_000)

    append(connections, org_id, origin=origin, details={"names": ["b\0" * 300], "count": 2**40})
    # What looks like a field of the hashed text, or like a parameter of the statement.
    strange = {
        "created_at": "",
        "prev_hash": '","seq":',
        "seq": "%(seq)s \\ \u2028 \U0001f600 ' ||",
    }
    append(connections, org_id, target=("run", '"'), details=strange)

    with connections.reading() as sql:
        last, row = audit_log.list_(sql, org_id, {}, limit=2, before=None)
    assert None is verification.verify(connections, org_id).broken
    assert strange == last.details
    assert "a\ufffd\ufffd\ufffd" + "ü" * 196 == row.user_agent
    assert {"names": ["b\ufffd" * 100], "count": 2**40} == row.details


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_entries SET action = 'x' WHERE org_id = '{org}'",
        "DELETE FROM audit_entries WHERE org_id = '{org}'",
        "TRUNCATE audit_entries",
        "DELETE FROM audit_heads WHERE org_id = '{org}'",
        "TRUNCATE audit_heads",
        "UPDATE audit_heads SET hash = 'x' WHERE org_id = '{org}'",
        "UPDATE audit_heads SET seq = seq - 1 WHERE org_id = '{org}'",
    ],
)
def test_the_database_refuses_changes(connections: Connections, statement: str) -> None:
    """The rights of the service allow it to append, and nothing else."""
    org_id = new_id()
    append(connections, org_id, 2)

    with pytest.raises(IntegrityError, match="audit"), connections.transaction() as tx:
        tx.sql.execute(text(statement.format(org=org_id)))

    assert 2 == verification.verify(connections, org_id).checked
