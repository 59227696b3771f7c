"""Outputs of function calls that clients send, as results for the run that waits for them."""

from collections.abc import Mapping
from uuid import UUID

from sqlalchemy import Connection, RowMapping

from arkloop.api.http.current import actor
from arkloop.api.protocols.responses_input import Input
from arkloop.shared.errors import InvalidRequest, NotActive, ToolResultConflict
from arkloop.shared.runs import commands, pending_calls
from arkloop.shared.runs.pending_calls import CallResult
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Transaction


def give(tx: Transaction, given: Input, run: RowMapping, asked: Mapping[str, str]) -> None:
    """Give the run these outputs; `asked` has its ids of the calls by those of clients.

    Raises:
        NotActive: the run has ended. NotWaiting: it does not wait for these results, or no longer.
        InvalidRequest, ToolResultConflict
    """
    if given.message is not None and RunState(run["state"]).is_terminal:
        raise NotActive()
    sent = (*given.earlier_results.items(), *given.results.items())
    outputs = {asked[id_]: text for id_, text in sent if id_ in asked}
    wanted = frozenset(asked.values())
    # A call that was given up need not have one; nor is one refused that comes too late.
    needed = wanted & pending_calls.awaited(tx.sql, run) if given.results else wanted
    shown = {own: id_ for id_, own in asked.items()}
    if missing := sorted(needed - outputs.keys()):
        call = f"{shown[missing[0]]}, which the run has as {missing[0]}"  # clients have either
        raise InvalidRequest(input=[f"No tool output found for function call {call}."])
    if unknown := sorted(given.results.keys() - asked.keys()):
        raise InvalidRequest(input=[f"No function call found with call_id {unknown[0]}."])
    results = [CallResult(tool_call_id=id_, output=text) for id_, text in outputs.items()]
    try:
        commands.give_results(tx, actor(), run["id"], results, skips_late=True)
    except ToolResultConflict as error:
        named = [shown[id_] for id_ in error.details["tool_call_ids"]]
        raise ToolResultConflict(call_ids=named) from None


def has_any(sql: Connection, given: Input, run_id: UUID, asked: Mapping[str, str]) -> bool:
    """Return whether the run has any of the outputs in front of the message; `asked` as above."""
    sent = (*given.earlier_results.items(), *given.results_before.items())
    results = [CallResult(tool_call_id=asked[i], output=text) for i, text in sent if i in asked]
    return pending_calls.has_any(sql, run_id, results)
