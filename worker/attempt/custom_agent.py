"""The execution of a run by a custom agent that is installed in this worker."""

import json
import logging
import time
from collections.abc import Sequence
from typing import Any

from arkloop.shared import machine, plugins
from arkloop.shared.agents.agent_call import AgentCall, AgentFunction
from arkloop.shared.agents.agent_run import RunStopped
from arkloop.shared.agents.transcript import shown
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.errors import LeaseLost
from arkloop.shared.events import types
from arkloop.shared.events.usage import Usage
from arkloop.shared.native_threads import ForeignCode
from arkloop.shared.runs import checkpoints, delegation, unbegun_calls
from arkloop.shared.runs.run_spans import attempt_key
from arkloop.worker.agent import landing
from arkloop.worker.agent.conversation import ResumeState, Turn
from arkloop.worker.agent.loop import Answer
from arkloop.worker.attempt import agent_messages, native_limits
from arkloop.worker.attempt.agent_recording import AgentRecording, Beginning
from arkloop.worker.attempt.agent_run import InProcessRun, stop_reason_of
from arkloop.worker.attempt.claimed_run import ClaimedRun
from arkloop.worker.contract.identity import RunIdentity, traceparent
from arkloop.worker.contract.outcomes import (
    DeadlineExceeded,
    LimitExceeded,
    RunFailure,
    StopRun,
    WaitForInput,
)
from arkloop.worker.process.history import MAX_BYTES
from arkloop.worker.process.process import WorkerProcess

log = logging.getLogger(__name__)

#: Seconds in which the agent's code can clean up when its run stops; then it is abandoned.
STOP_SECONDS = 1.0


def carry_out(
    process: WorkerProcess,
    run: ClaimedRun,
    identity: RunIdentity,
    persona: Persona,
    earlier: ResumeState,
) -> Answer:
    """Call the persona's agent, from its last checkpoint on, and return the run's answer.

    Raises:
        RunFailure: it is not installed, or has failed. StopRun, LeaseLost: this attempt ends.
    """
    function = _function(persona.agent or "")
    if earlier.lost:
        run.void_lost(earlier.lost[0].seq)
    if run.is_resumed:
        run.admission.take_over()
    claim = run.claim
    unbegun = _unbegun(process, run, earlier)
    beginning = Beginning(
        calls=agent_messages.calls_of(earlier.turns, unbegun),
        answers=earlier.answers,
        approvals=earlier.approvals,
        checkpoint=_checkpoint(process, run) if run.is_resumed else None,
        last_turn=_said_last(earlier.turns),
    )
    route = process.catalog.route(claim.org_id, claim.route_id)
    recording = AgentRecording(process, run, persona, route, beginning)
    if earlier.limit_reached:
        return recording.cut_off(earlier.limit_reached, run.admission.cost())
    try:
        if earlier.turns:
            recording.delegation.resume(earlier.turns)
        with process.histories.history_of(claim, MAX_BYTES, run) as seen:
            agent_run = InProcessRun(
                run_id=identity.run_id,
                thread_id=identity.thread_id,
                org_id=identity.org_id,
                end_user_id=identity.end_user_id,
                metadata=identity.metadata,
                traceparent=traceparent(
                    identity.trace_id, attempt_key(identity.run_id, claim.fence)
                ),
                instructions=persona.system_prompt,
                model=claim.model,
                model_settings=persona.model_settings,
                output_schema=persona.output_schema,
                messages=[
                    *agent_messages.shown(seen.messages),
                    *agent_messages.turns_shown(earlier.turns, unbegun),
                ],
                attempt=run.attempt,
                checkpoint_data=json.loads(beginning.checkpoint or "null"),
                recording=recording,
            )
            return recording.answer(_call(run, function, agent_run))
    except StopRun as stop:
        left = recording.transcript.left_unbegun(waits=isinstance(stop, WaitForInput))
        run.unbegun_calls = left if left or unbegun else None
        if not isinstance(stop, DeadlineExceeded) or persona.on_limit == "fail":
            raise
        return recording.cut_off("timeout", run.last_cost())
    except LimitExceeded as limit:
        reason = landing.stop_reason_of(limit, persona)
        if reason is None:
            raise
        reached = types.RunLimitReached(reason, str(limit))
        return recording.cut_off(reason, run.admission.cost(), reached)


def _function(name: str) -> AgentFunction:
    found: AgentFunction | None = plugins.load("agents").get(name)
    if found is None:
        message = f"No agent {name!r} is installed in this worker."
        raise RunFailure("agent.not_found", message, retryable=True)
    return found


def _checkpoint(process: WorkerProcess, run: ClaimedRun) -> str | None:
    with process.connections.reading() as sql:
        return checkpoints.load(sql, run.claim.run_id)


def _said_last(turns: Sequence[Turn]) -> types.MessageCompleted | None:
    """Return the last finished turn: the agent may have had nothing to do after it but to return.

    None if it called a tool, and without one.
    """
    if not turns or turns[-1].calls:
        return None
    return types.MessageCompleted(turns[-1].message_id, turns[-1].content, Usage())


def _unbegun(process: WorkerProcess, run: ClaimedRun, earlier: ResumeState) -> set[str]:
    """Return the calls that are known not to have begun."""
    done = {call_id for turn in earlier.turns for call_id in turn.results}
    open_calls = {call.id for turn in earlier.turns for call in turn.calls} - done
    if not open_calls:
        return set()
    with process.connections.reading() as sql:
        ledger = unbegun_calls.read(sql, run.claim.run_id)
        begun = ledger.begun | delegation.accepted(sql, run.claim.run_id, open_calls)
    return open_calls & (earlier.approvals.keys() | ledger.unbegun) - begun


def _call(run: ClaimedRun, function: AgentFunction, agent_run: InProcessRun) -> Any:
    """Call the agent's function in a thread of its own; return what it returns.

    Raises:
        RunFailure: `agent.failed`, or a limit that one of the agent's calls has reached.
        MemoryError, Unavailable: the agent lacked memory or a file descriptor.
        StopRun, LeaseLost: this attempt ends.
    """
    called = AgentCall(function)

    def start(code: ForeignCode[Any]) -> Any:
        agent_run.code = code
        return called(agent_run)

    native_limits.refuse_programs()
    code = ForeignCode(start)
    try:
        with run.aborting(code.wake):
            while not code.serve() and agent_run.stopped is None:
                run.check()
        if agent_run.stopped is not None:
            raise agent_run.stopped
    except (StopRun, LeaseLost, RunFailure) as reason:
        why = stop_reason_of(reason)
        code.close(lambda: RunStopped(why))
        called.cancel()
        if not _ends_in_time(code):
            log.warning("abandoning agent: it did not return after its run had to stop: %s", why)
        raise
    finally:
        code.close(lambda: RunStopped("lost"))
        code.release()
    if code.error is None:
        return code.result
    log.error("the agent raised", exc_info=code.error)
    if shortage := machine.lasting_shortage(code.error):
        machine.raise_shortage(shortage)
    message = f"The agent failed: {shown(code.error)}"
    raise RunFailure("agent.failed", native_limits.explained(message, code.error)) from code.error


def _ends_in_time(code: ForeignCode[Any]) -> bool:
    deadline = time.monotonic() + STOP_SECONDS
    while not code.has_ended and (left := deadline - time.monotonic()) > 0:
        code.serve(left)
    return code.has_ended
