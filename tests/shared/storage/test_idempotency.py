"""Stored answers go when their time has come."""

from uuid import UUID

import pytest
from sqlalchemy import func, select, text

from arkloop.shared.accounts import accounts
from arkloop.shared.ids import new_id
from arkloop.shared.storage import idempotency
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.idempotency import Scope, StoredAnswer
from arkloop.shared.storage.tables.storage import idempotency_keys

ANSWER = StoredAnswer(status=201, headers={"Location": "/x"}, body="{}")


@pytest.fixture
def org_id(connections: Connections) -> UUID:
    with connections.transaction() as tx:
        return accounts.create_org(tx, "org")


def test_answers_older_than_a_day_are_deleted_in_batches(
    connections: Connections, org_id: UUID
) -> None:
    """Responses older than a day are deleted in batches of at most `limit`; younger ones stay."""
    with connections.transaction() as tx:
        for number in range(5):
            scope = Scope(org_id=org_id, actor_id=new_id(), path="/", key=str(number))
            idempotency.keep(tx, scope, "hash", ANSWER)
        old = "UPDATE idempotency_keys SET created_at = now() - interval '24 h 1 s' WHERE key < '3'"
        tx.sql.execute(text(old))

    deleted = []
    for _ in range(3):
        with connections.transaction() as tx:
            deleted.append(idempotency.delete_old(tx, limit=2))

    assert [2, 1, 0] == deleted
    with connections.reading() as sql:
        is_own = idempotency_keys.c.org_id == org_id
        assert 2 == sql.scalar(select(func.count()).where(is_own))


def test_a_key_is_free_when_its_transaction_has_ended(
    connections: Connections, org_id: UUID
) -> None:
    """An idempotency key is locked until its transaction commits or rolls back."""
    scope = Scope(org_id=org_id, actor_id=new_id(), path="/", key="k")
    other = Scope(org_id=org_id, actor_id=scope.actor_id, path="/", key="other")
    with connections.transaction() as first, connections.transaction() as second:
        claims = [
            idempotency.claim(first, scope),
            idempotency.claim(second, scope),
            idempotency.claim(second, other),
        ]
    with connections.transaction() as third:
        claims.append(idempotency.claim(third, scope))

    assert [True, False, True, True] == claims


def test_a_kept_answer_is_found_as_it_was(connections: Connections, org_id: UUID) -> None:
    """A stored response is replayed with its status, headers and body."""
    scope = Scope(org_id=org_id, actor_id=new_id(), path="/", key="k")
    with connections.transaction() as tx:
        assert idempotency.find(tx, scope, "hash") is None
        idempotency.keep(tx, scope, "hash", ANSWER)

    with connections.transaction() as tx:
        assert ANSWER == idempotency.find(tx, scope, "hash")
