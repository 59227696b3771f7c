"""Operators of the installation, as they are stored."""

from arkloop.shared.accounts import operators
from arkloop.shared.storage.connections import Connections
from tests.clients import User


def test_an_operator_is_listed_until_removed(connections: Connections, alice: User) -> None:
    """Adding twice and removing twice say that nothing has changed."""
    with connections.transaction() as tx:
        changed = [operators.add(tx, alice.id), operators.add(tx, alice.id)]
        listed = [row.login for row in operators.list_(tx.sql)]
        changed += [operators.remove(tx, alice.id), operators.remove(tx, alice.id)]
        left = operators.list_(tx.sql)

    assert ([True, False, True, False], [alice.login], []) == (changed, listed, left)
