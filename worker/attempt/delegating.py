"""The tool `delegate`, by which a run starts sub-runs, and what is due at the end of such a run."""

import logging
from collections.abc import Mapping
from typing import Any

from arkloop.shared.agents.transcript import MAX_TASK_CHARACTERS
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.errors import Unavailable
from arkloop.shared.events.types import DELEGATE
from arkloop.shared.outage_log import reason_of
from arkloop.shared.runs import delegation, trees
from arkloop.shared.runs.delegation import NotDelegated
from arkloop.shared.runs.states import ResultSource
from arkloop.worker.attempt.claimed_run import ClaimedRun
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.contract.messages import ToolSpec
from arkloop.worker.contract.outcomes import CancelRequested
from arkloop.worker.process.process import WorkerProcess
from arkloop.worker.tools import CallInfo, ResultPending, Tool, ToolFailed

log = logging.getLogger(__name__)

_DESCRIPTION = (
    "Give a task to another agent, which works on it by itself, and get its answer as the result."
    " It knows nothing but the task: say all that it has to know. Calls that are made together are"
    " worked on side by side."
)


def tools_of(process: WorkerProcess, run: ClaimedRun, persona: Persona) -> dict[str, Tool]:
    """Return the tool, for the personas that this one may give tasks to; nothing without any."""
    if not persona.delegates:
        return {}

    def call(_context: ToolContext, info: CallInfo, arguments: Mapping[str, Any]) -> str:
        try:
            start(process, run, persona, info.tool_call_id, **arguments)
        except NotDelegated as refused:
            raise ToolFailed(str(refused)) from None
        raise ResultPending

    spec = ToolSpec(DELEGATE, _DESCRIPTION, _parameters(persona))
    # Called again after a crash, it finds the sub-run that it has started.
    return {DELEGATE: Tool(spec=spec, function=call, idempotent=True, result_from=ResultSource.RUN)}


def announce(process: WorkerProcess, run: ClaimedRun) -> None:
    """Write the events of sub-runs that an earlier attempt has started, if it could not."""
    with process.connections.reading() as sql:
        for tool_call_id, sub_run in delegation.unannounced(sql, run.claim.run_id):
            run.emit(delegation.announcement(tool_call_id, sub_run))


def cancel_left(process: WorkerProcess, run: ClaimedRun) -> None:
    """Cancel sub-runs that are active when their run has ended; the sweep does it in an outage."""
    try:
        with process.connections.transaction() as tx:
            trees.cancel_orphans(tx, run.claim.run_id)
    except Unavailable as outage:
        log.warning("the sweep will cancel what is left of the run's tree: %s", reason_of(outage))


def start(
    process: WorkerProcess,
    run: ClaimedRun,
    by: Persona,
    tool_call_id: str,
    *,
    persona: str,
    task: str,
) -> None:
    """Start the sub-run of a call that is in the ledger, once.

    Raises:
        NotDelegated
    """
    claim = run.claim
    call = delegation.prepare(process.catalog, claim, by, tool_call_id, persona=persona, task=task)
    sub_run = run.write(
        process.connections.transaction, lambda tx: delegation.start(tx, claim, call)
    )
    if sub_run is None:
        raise CancelRequested()
    run.emit(delegation.announcement(tool_call_id, sub_run))


def _parameters(persona: Persona) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "persona": {
                "type": "string",
                "enum": list(persona.delegates),
                "description": "The agent that gets the task.",
            },
            "task": {
                "type": "string",
                "minLength": 1,
                "maxLength": MAX_TASK_CHARACTERS,
                "description": "What it has to do, with all that it needs to know.",
            },
        },
        "required": ["persona", "task"],
        "additionalProperties": False,
    }
