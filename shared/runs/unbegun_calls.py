"""The calls that a custom agent has recorded and not begun, from one execution to the next.

An execution that waits or is handed over knows them; one that is lost leaves it unknown whether its
recorded calls have begun. Each has a row in the ledger beside the one with which a call begins. Its
id begins with a space, which the id of no call does, so that a process of the release before begins
such a call as any other.
"""

from collections.abc import Collection
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection, delete, insert, or_, select

from arkloop.shared.claim import Claim
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.runs import tool_calls

_MARK = " "


class Ledger(NamedTuple):
    """The ids of the calls that agents have begun, and of those that are known to be unbegun."""

    begun: set[str]
    unbegun: set[str]


def read(sql: Connection, run_id: UUID) -> Ledger:
    """Read which calls of earlier executions of the run have begun."""
    own = (tool_calls.c.run_id == run_id) & tool_calls.c.result_from.is_(None)
    ids = set(sql.scalars(select(tool_calls.c.tool_call_id).where(own)))
    begun = {id_ for id_ in ids if not id_.startswith(_MARK)}
    return Ledger(begun, {id_.removeprefix(_MARK) for id_ in ids - begun} - begun)


def keep(tx: Transaction, claim: Claim, call_ids: Collection[str]) -> None:
    """Record that these are the unbegun calls of the run, as an execution ends in order.

    Those that had begun asked a person before they returned, and are made once more.
    """
    own = (tool_calls.c.run_id == claim.run_id) & tool_calls.c.result_from.is_(None)
    id_ = tool_calls.c.tool_call_id
    earlier = or_(id_.startswith(_MARK), id_.in_(call_ids))
    tx.sql.execute(delete(tool_calls).where(own, earlier))
    if call_ids:
        rows = [
            {"run_id": claim.run_id, "tool_call_id": _MARK + call_id, "fence": claim.fence}
            for call_id in call_ids
        ]
        tx.sql.execute(insert(tool_calls), rows)
