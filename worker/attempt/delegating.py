"""The tool `delegate`, by which a run starts sub-runs, and what is due at the end of such a run."""

import logging
from collections.abc import Mapping
from typing import Any

from arkloop.shared.catalog.personas import DELEGATE, Persona
from arkloop.shared.errors import BudgetExhausted, PersonaNotFound, RouteNotFound, Unavailable
from arkloop.shared.events.types import RunDelegated
from arkloop.shared.runs import delegation, trees
from arkloop.shared.runs.delegation import Delegation, NotDelegated, SubRun
from arkloop.shared.runs.states import ResultSource
from arkloop.worker.attempt.claimed_run import ClaimedRun
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.contract.messages import ToolSpec
from arkloop.worker.contract.outcomes import CancelRequested
from arkloop.worker.process.process import WorkerProcess
from arkloop.worker.tools import CallInfo, ResultPending, Tool, ToolFailed

log = logging.getLogger(__name__)

MAX_TASK_CHARACTERS = 100_000
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
        _start(process, run, persona, info.tool_call_id, **arguments)
        raise ResultPending

    spec = ToolSpec(DELEGATE, _DESCRIPTION, _parameters(persona))
    # Called again after a crash, it finds the sub-run that it has started.
    return {DELEGATE: Tool(spec=spec, function=call, idempotent=True, result_from=ResultSource.RUN)}


def announce(process: WorkerProcess, run: ClaimedRun) -> None:
    """Write the events of sub-runs that an earlier attempt has started, if it could not."""
    with process.connections.reading() as sql:
        for tool_call_id, sub_run in delegation.unannounced(sql, run.claim.run_id):
            run.emit(_event(tool_call_id, sub_run))


def cancel_left(process: WorkerProcess, run: ClaimedRun) -> None:
    """Cancel sub-runs that are active when their run has ended; the sweep does it in an outage."""
    try:
        with process.connections.transaction() as tx:
            trees.cancel_orphans(tx, run.claim.run_id)
    except Unavailable as outage:
        log.warning("the sweep will cancel what is left of the run's tree: %s", outage.__cause__)


def _start(
    process: WorkerProcess,
    run: ClaimedRun,
    by: Persona,
    tool_call_id: str,
    *,
    persona: str,
    task: str,
) -> None:
    catalog, claim = process.catalog, run.claim
    try:
        wanted = catalog.persona(claim.org_id, persona)
        route = catalog.choose_route(claim.org_id, wanted.route_id or claim.route_id, wanted)
        call = Delegation(tool_call_id=tool_call_id, by=by, persona=wanted, route=route, task=task)
        sub_run = run.write(
            process.connections.transaction, lambda tx: delegation.start(tx, claim, call)
        )
    except NotDelegated as refused:
        raise ToolFailed(str(refused)) from None
    except (PersonaNotFound, RouteNotFound, BudgetExhausted) as error:
        raise ToolFailed(f"Not executed: {error.code}: {error.message}") from None
    if sub_run is None:
        raise CancelRequested()
    run.emit(_event(tool_call_id, sub_run))


def _event(tool_call_id: str, sub_run: SubRun) -> RunDelegated:
    return RunDelegated(
        tool_call_id, str(sub_run.run_id), str(sub_run.thread_id), sub_run.persona_id
    )


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
