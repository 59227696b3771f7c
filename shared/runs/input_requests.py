"""The input that tool calls request from people: kept with the call until it is made again.

Such a call has ended so far. The attempt that makes it again takes the request out of its row in
the statement that makes the call its own, so that nobody makes it with the same replies again.
"""

from typing import Any

from sqlalchemy import and_, select, update

from arkloop.shared.claim import Claim
from arkloop.shared.errors import LeaseLost
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.runs import runs, tool_calls


def require_input(tx: Transaction, claim: Claim, tool_call_id: str, request: str) -> None:
    """Record that a call has ended so far, and is to be made again with people's replies.

    Raises:
        LeaseLost
    """
    held = _held(claim)
    written = tx.sql.execute(
        update(tool_calls)
        .where(tool_calls.c.run_id == held, tool_calls.c.tool_call_id == tool_call_id)
        .values(input_request=request)
    )
    if not written.rowcount:
        raise LeaseLost()


def continue_tool_call(tx: Transaction, claim: Claim, tool_call_id: str) -> bool:
    """Record that the call is made again, with replies; False if an earlier claim has done so.

    Raises:
        LeaseLost
    """
    held = _held(claim)
    requested = tool_calls.c.input_request.is_not(None)
    of_call = and_(tool_calls.c.run_id == held, tool_calls.c.tool_call_id == tool_call_id)
    begun = update(tool_calls).where(of_call, requested)
    if tx.sql.execute(begun.values(input_request=None, fence=claim.fence)).rowcount:
        return True
    begun_by = tx.sql.scalar(select(tool_calls.c.fence).where(of_call))
    if begun_by is None:
        raise LeaseLost()
    return bool(begun_by == claim.fence)


def _held(claim: Claim) -> Any:
    """Return the run's id, locked, if the claim still holds it."""
    is_claimed = and_(runs.c.id == claim.run_id, runs.c.fence == claim.fence)
    held = select(runs.c.id).where(is_claimed, runs.c.state == RunState.EXECUTING)
    return held.with_for_update(read=True).scalar_subquery()
