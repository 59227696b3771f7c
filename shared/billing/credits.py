"""Credits: what an org has paid in advance and not used, as a ledger with two sides.

`ledger_entries` is the truth and only grows; each entry debits one account of the org and credits
another. `credit_balances` is the sum of its account `customer`, kept beside it so that a run can
reserve a part. An org without such a row does not pay in advance: what it uses it owes.

    grant                       funding ──▶ customer
    correction of a grant       customer ──▶ funding
    a run, paid in advance      customer ──▶ revenue
    a run, otherwise            receivable ──▶ revenue
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Connection,
    Row,
    Uuid,
    case,
    column,
    func,
    insert,
    or_,
    select,
    table,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from arkloop.shared.errors import InvalidRequest
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.pages import Place, after, newest
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.billing import credit_balances, ledger_entries
from arkloop.shared.usd import MAX_COST_USD

CREDITS_PER_USD = 1000
#: Of one grant; a balance that grows by it every second fits its column for 292 years.
MAX_GRANT = 10**9
MAX_NOTE = 200  # characters

_PAY = statement(__package__, "pay_credits")


def credits_of(cost_usd: Decimal) -> int:
    """Convert a run's cost, up to the largest that is stored, to credits: each started one
    counts.
    """
    return max(math.ceil(min(cost_usd, MAX_COST_USD) * CREDITS_PER_USD), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """`held` is the part of `balance` that active runs have reserved; None: not in advance."""

    balance: int | None
    held: int


def grant(
    tx: Transaction,
    org_id: UUID,
    credits: int,
    note: str | None = None,
    *,
    entry_id: UUID | None = None,
) -> UUID:
    """Grant credits to the org, which is prepaid from now on. Returns the entry's id.

    A negative number takes some back, at most what is there and not held. With an `entry_id` of
    its own the caller can look whether the grant `is_entered` if the commit is not answered.

    Raises:
        InvalidRequest: 0, too many, a note that is too long, or more taken than is free.
    """
    if not 0 < abs(credits) <= MAX_GRANT:
        raise InvalidRequest(
            credits=[(f"must be between -{MAX_GRANT:,} and {MAX_GRANT:,} and not 0")]
        )
    if note is not None and len(note) > MAX_NOTE:
        raise InvalidRequest(note=[f"must have at most {MAX_NOTE} characters"])
    if credits > 0:
        tx.sql.execute(
            upsert(credit_balances)
            .values(org_id=org_id, balance=credits)
            .on_conflict_do_update(
                index_elements=["org_id"], set_={"balance": credit_balances.c.balance + credits}
            )
        )
    else:
        taken = update(credit_balances).where(
            credit_balances.c.org_id == org_id,
            credit_balances.c.balance - credit_balances.c.held >= -credits,
        )
        if not tx.sql.execute(taken.values(balance=credit_balances.c.balance + credits)).rowcount:
            raise InvalidRequest(
                credits=[("exceeds the organization's available (unreserved) credits")]
            )
    sides = ("funding", "customer") if credits > 0 else ("customer", "funding")
    return _enter(tx.sql, org_id, "grant", sides, abs(credits), note=note, entry_id=entry_id)


def is_entered(sql: Connection, entry_id: UUID) -> bool:
    """Return whether the ledger has the entry of this id."""
    found = select(ledger_entries.c.id).where(ledger_entries.c.id == entry_id)
    return sql.execute(found).one_or_none() is not None


def open_prepaid(tx: Transaction, org_id: UUID, credits: int) -> None:
    """Make a new org pay in advance, with this many credits to begin with; 0 is possible."""
    if credits:
        grant(tx, org_id, credits, "allowance of a new organization")
    else:
        tx.sql.execute(insert(credit_balances).values(org_id=org_id, balance=0))


def pay(sql: Connection, org_id: UUID, run_id: UUID, credits: int, *, held: int) -> None:
    """Enter what a run has used, and release what it has `held`.

    It is paid by the balance as far as that is not held by other runs; the rest is owed. An org
    that does not pay in advance owes all of it.
    """
    if not credits and not held:
        return
    entry_ids = {"paid_id": new_id(), "owed_id": new_id()}
    of_run = {"org_id": org_id, "run_id": run_id, "charge": credits, "held": held}
    sql.exec_driver_sql(_PAY, {**entry_ids, **of_run})


def owe(sql: Connection, org_id: UUID, run_id: UUID, credits: int) -> None:
    """Enter what a run has used that reserved nothing, and leave the balance as it is."""
    if credits:
        _enter(sql, org_id, "usage", ("receivable", "revenue"), credits, run_id=run_id)


def _enter(
    sql: Connection,
    org_id: UUID,
    kind: str,
    sides: tuple[str, str],
    credits: int,
    *,
    run_id: UUID | None = None,
    note: str | None = None,
    entry_id: UUID | None = None,
) -> UUID:
    entry_id = entry_id or new_id()
    sql.execute(
        insert(ledger_entries).values(
            id=entry_id,
            org_id=org_id,
            kind=kind,
            run_id=run_id,
            debit_account=sides[0],
            credit_account=sides[1],
            credits=credits,
            note=note,
        )
    )
    return entry_id


def balance(sql: Connection, org_id: UUID) -> Balance:
    """Return the org's balance."""
    row = sql.execute(
        select(credit_balances.c.balance, credit_balances.c.held).where(
            credit_balances.c.org_id == org_id
        )
    ).one_or_none()
    return Balance(balance=row.balance, held=row.held) if row else Balance(balance=None, held=0)


def entries(
    sql: Connection, org_id: UUID, *, limit: int, before: Place | None
) -> Sequence[Row[Any]]:
    """Return a page of the org's ledger, newest first."""
    # The places first, of which the index alone tells: to Postgres, which may not know how many
    # entries an org has, it then seems the cheapest way even for a few.
    of_org = select(ledger_entries.c.created_at, ledger_entries.c.id).where(
        ledger_entries.c.org_id == org_id
    )
    places = newest(of_org, ledger_entries, limit=limit, is_deep=before is not None).subquery()
    page = select(ledger_entries).join(places, places.c.id == ledger_entries.c.id)
    return sql.execute(newest(page, places, limit=limit), after(before)).all()


def lock(sql: Connection, org_ids: Sequence[UUID]) -> None:
    """Lock the balances of these orgs, in the one order."""
    sql.execute(
        select(credit_balances.c.org_id)
        .where(credit_balances.c.org_id.in_(org_ids))
        .order_by(credit_balances.c.org_id)
        .with_for_update()
    )


def accounts(sql: Connection, org_id: UUID) -> dict[str, int]:
    """Return the total of each of the org's accounts in the ledger: credits less debits."""
    entry = ledger_entries.c
    total: dict[str, int] = {}
    for account, sign in ((entry.credit_account, 1), (entry.debit_account, -1)):
        rows = sql.execute(
            select(account, func.sum(entry.credits)).where(entry.org_id == org_id).group_by(account)
        )
        for name, credits in rows:
            total[name] = total.get(name, 0) + sign * int(credits)
    return total


def check(sql: Connection, org_id: UUID | None = None) -> list[tuple[UUID, int, int]]:
    """Find orgs (or check one) whose balance is not the sum of their ledger: (org, balance, sum).

    One statement, hence of one moment. Empty when the books are right. The ledger of an org that
    was erased, since another cell has it, stays here without a balance, and is not looked at.
    """
    entry = ledger_entries.c
    sign = case((entry.credit_account == "customer", 1), else_=-1)
    sums = (
        select(entry.org_id, func.sum(sign * entry.credits).label("credits"))
        .where(or_(entry.credit_account == "customer", entry.debit_account == "customer"))
        .where(*(() if org_id is None else (entry.org_id == org_id,)))
        .group_by(entry.org_id)
        .subquery()
    )
    kept = (
        select(credit_balances)
        .where(*(() if org_id is None else (credit_balances.c.org_id == org_id,)))
        .subquery()
    )
    balance_, sum_ = func.coalesce(kept.c.balance, 0), func.coalesce(sums.c.credits, 0)
    orgs = table("orgs", column("id", Uuid))
    rows = sql.execute(
        select(orgs.c.id, balance_, sum_)
        .outerjoin_from(orgs, kept, kept.c.org_id == orgs.c.id)
        .outerjoin(sums, sums.c.org_id == orgs.c.id)
        .where(balance_ != sum_)
    )
    return [(found, int(has), int(adds)) for found, has, adds in rows]
