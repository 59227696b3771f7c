"""Sub-runs as calls of stored runs start them."""

from arkloop.shared.claim import Claim
from arkloop.shared.ids import new_id
from arkloop.shared.runs import claims, delegation
from arkloop.shared.runs.delegation import Delegation, SubRun
from arkloop.shared.runs.states import ResultSource
from arkloop.shared.storage.connections import Transaction
from tests.stored_runs import StoredRuns


def begun(stored: StoredRuns, parent: Claim) -> str:
    """Begin a call of a run that a worker holds; returns its id."""
    call_id = new_id().hex
    with stored.connections.transaction() as tx:
        claims.begin_tool_call(tx, parent, call_id, ResultSource.RUN)
    return call_id


def delegated(stored: StoredRuns, parent: Claim, call_id: str | None = None) -> SubRun:
    """Start the sub-run of a call, by default of a new one."""
    call_id = call_id or begun(stored, parent)
    with stored.connections.transaction() as tx:
        return delegate(tx, stored, parent, call_id)


def delegate(tx: Transaction, stored: StoredRuns, parent: Claim, call_id: str) -> SubRun:
    """Start the sub-run of a call in this transaction."""
    new = stored.wanted(new_id())
    task = Delegation(
        tool_call_id=call_id,
        by=new.persona,
        persona=new.persona,
        route=new.route,
        task="Do it.",
    )
    started = delegation.start(tx, parent, task)
    assert started is not None
    return started
