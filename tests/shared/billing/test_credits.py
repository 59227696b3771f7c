"""The ledger of credits: it only grows, it balances, and what is held is not given away."""

import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import DBAPIError

from arkloop.shared.billing import credits
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.billing import credit_balances, ledger_entries
from tests.clients import User
from tests.waiting import in_parallel


def grant(connections: Connections, user: User, amount: int, note: str | None = None) -> None:
    with connections.transaction() as tx:
        credits.grant(tx, user.org_id, amount, note)


def balance(connections: Connections, user: User) -> tuple[int | None, int]:
    with connections.reading() as sql:
        assert [] == credits.check(sql, user.org_id)
        has = credits.balance(sql, user.org_id)
    return has.balance, has.held


def test_grants_add_up(connections: Connections, alice: User) -> None:
    """A negative grant takes some back; the ledger has each of them, debit and credit."""
    assert (None, 0) == balance(connections, alice)
    for amount, note in ((100, "paid"), (50, None), (-30, "a mistake")):
        grant(connections, alice, amount, note)

    assert (120, 0) == balance(connections, alice)
    entry = ledger_entries.c
    with connections.reading() as sql:
        rows = sql.execute(
            select(entry.kind, entry.debit_account, entry.credit_account, entry.credits, entry.note)
            .where(entry.org_id == alice.org_id)
            .order_by(entry.created_at)
        ).all()
        accounts = credits.accounts(sql, alice.org_id)
    assert [
        ("grant", "funding", "customer", 100, "paid"),
        ("grant", "funding", "customer", 50, None),
        ("grant", "customer", "funding", 30, "a mistake"),
    ] == [tuple(row) for row in rows]
    assert {"customer": 120, "funding": -120} == accounts
    assert 0 == sum(accounts.values())


def test_only_what_no_run_holds_is_taken_back(connections: Connections, alice: User) -> None:
    """All unreserved credits can be taken back, and not one more."""
    grant(connections, alice, 100)
    with connections.transaction() as tx:
        own = credit_balances.c.org_id == alice.org_id
        tx.sql.execute(update(credit_balances).where(own).values(held=60))

    with pytest.raises(InvalidRequest) as refused:
        grant(connections, alice, -41)
    grant(connections, alice, -40)

    assert ["credits"] == list(refused.value.details)
    assert (60, 60) == balance(connections, alice)


@pytest.mark.parametrize("amount", [0, credits.MAX_GRANT + 1, -credits.MAX_GRANT - 1])
def test_a_grant_of_nothing_or_too_much_is_refused(
    connections: Connections, alice: User, amount: int
) -> None:
    """A grant of nothing or of too much enters nothing in the ledger."""
    with pytest.raises(InvalidRequest):
        grant(connections, alice, amount)

    assert (None, 0) == balance(connections, alice)


def test_a_long_note_is_refused(connections: Connections, alice: User) -> None:
    """A note of 200 characters is accepted, a longer one is refused."""
    grant(connections, alice, 1, "n" * 200)
    with pytest.raises(InvalidRequest):
        grant(connections, alice, 1, "n" * 201)

    assert (1, 0) == balance(connections, alice)


def test_grants_at_once_all_count(connections: Connections, alice: User) -> None:
    """Concurrent grants all count, including the first ones that create the balance."""
    in_parallel(16, lambda number: grant(connections, alice, number + 1))

    assert (136, 0) == balance(connections, alice)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_entries SET credits = 1",
        "DELETE FROM ledger_entries",
        "TRUNCATE ledger_entries",
    ],
)
def test_the_ledger_only_grows(connections: Connections, alice: User, statement: str) -> None:
    """The database itself sees to it."""
    grant(connections, alice, 100)

    with (
        pytest.raises(DBAPIError, match="append-only"),
        connections.transaction() as tx,
    ):
        tx.sql.execute(text(statement))

    assert (100, 0) == balance(connections, alice)


@pytest.mark.parametrize(
    "columns", [{"credits": 0}, {"credits": -1}, {"debit_account": "customer"}]
)
def test_an_entry_moves_something_from_one_account_to_another(
    connections: Connections, alice: User, columns: dict[str, object]
) -> None:
    """The database refuses what does not."""
    values = {
        "id": new_id(),
        "org_id": alice.org_id,
        "kind": "grant",
        "debit_account": "funding",
        "credit_account": "customer",
        "credits": 1,
    }
    with (
        pytest.raises(DBAPIError, match="ck_ledger_entries_moves"),
        connections.transaction() as tx,
    ):
        tx.sql.execute(insert(ledger_entries).values({**values, **columns}))


@pytest.mark.parametrize("columns", [{"held": -1}, {"held": 101}, {"balance": -1}])
def test_a_balance_is_never_less_than_what_is_held(
    connections: Connections, alice: User, columns: dict[str, int]
) -> None:
    """The database refuses a balance below what is reserved, or below zero, whatever the code
    does.
    """
    grant(connections, alice, 100)

    with (
        pytest.raises(DBAPIError, match="ck_credit_balances_held"),
        connections.transaction() as tx,
    ):
        own = credit_balances.c.org_id == alice.org_id
        tx.sql.execute(update(credit_balances).where(own).values(**columns))


def test_a_wrong_balance_is_found(connections: Connections, alice: User) -> None:
    """A wrong balance is reported with the ledger's sum, also where one of both is missing."""
    grant(connections, alice, 100)
    own = credit_balances.c.org_id == alice.org_id
    with connections.transaction() as tx:
        tx.sql.execute(update(credit_balances).where(own).values(balance=101))
        assert [(alice.org_id, 101, 100)] == credits.check(tx.sql, alice.org_id)
        tx.sql.execute(credit_balances.delete().where(own))
        assert [(alice.org_id, 0, 100)] == credits.check(tx.sql)
        tx.sql.rollback()

    assert (100, 0) == balance(connections, alice)
