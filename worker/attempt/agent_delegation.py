"""The sub-runs of a custom agent in this process: its calls of `delegate`, and their results."""

from collections.abc import Mapping, Sequence

from arkloop.shared import fault_points
from arkloop.shared.agents.agent_run import Call
from arkloop.shared.agents.transcript import Transcript
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.events.types import DELEGATE, ToolResult
from arkloop.shared.runs import delegation
from arkloop.shared.runs.delegation import NotDelegated
from arkloop.shared.runs.states import ResultSource
from arkloop.worker.agent.conversation import Turn
from arkloop.worker.attempt import delegating
from arkloop.worker.attempt.claimed_run import ClaimedRun
from arkloop.worker.contract.messages import ToolMessage
from arkloop.worker.contract.outcomes import PendingCall, WaitForInput
from arkloop.worker.process.history import take_done_calls
from arkloop.worker.process.process import WorkerProcess


class AgentDelegation:
    """The calls of `delegate` of one execution.

    A call is in the ledger before its event is written, so an execution that finds the event knows
    what it is, and starts the sub-run if the one before could not.
    """

    def __init__(
        self, process: WorkerProcess, run: ClaimedRun, persona: Persona, transcript: Transcript
    ) -> None:
        self._process, self._run, self._persona = process, run, persona
        self._transcript = transcript
        self._results: dict[str, ToolResult] = {}  # in the ledger, without an event
        self._accepted: set[str] = set()  # their sub-runs have been started

    def resume(self, turns: Sequence[Turn]) -> None:
        """Settle the calls of earlier executions, before the agent is called.

        They are in the last of the turns, unless an agent has recorded one long before its task.

        Raises:
            WaitForInput: sub-runs are active.
        """
        open_calls = {call["id"]: call for call in self._transcript.pending}
        with self._process.connections.reading() as sql:
            begun = delegation.begun(sql, self._run.claim.run_id, open_calls.keys())
            turn_of = {call.id: turn for turn in turns for call in turn.calls if call.id in begun}
            for turn in turns[:-1]:
                if any(call.id in begun for call in turn.calls):
                    take_done_calls(sql, self._run.claim.run_id, turn)
        if not begun:
            return
        delegating.announce(self._process, self._run)
        for turn in turn_of.values():
            self._results |= turn.ledger_results
            self._accepted |= turn.accepted
        for seq, result in self.settle([call for id_, call in open_calls.items() if id_ in begun]):
            turn = turn_of[result.tool_call_id]
            turn.results[result.tool_call_id] = ToolMessage(
                result.tool_call_id,
                result.name,
                result.output,
                seq=seq,
                characters=result.characters,
            )
            if result.is_error:
                turn.failed.add(result.tool_call_id)

    def begin(self, call: Call) -> None:
        """Put a call into the ledger, before its event is written.

        Raises:
            ValueError: the persona has no `delegates`.
        """
        if not self._persona.delegates:
            raise ValueError("The run's persona has no `delegates`.")
        self._run.begin_tool_call(call["id"], ResultSource.RUN)

    def settle(self, calls: Sequence[Call]) -> list[tuple[int, ToolResult]]:
        """Start the sub-runs of the calls, and write their results; returns them by their numbers.

        Raises:
            WaitForInput: sub-runs are active.
        """
        results = {call["id"]: self._result(call) for call in calls}
        if any(result is None for result in results.values()):
            self._wait(calls, results)
        written = []
        for result in filter(None, results.values()):
            written.append((self._run.note(result), result))
            self._transcript.end(result)
        self._run.checkpoint()
        fault_points.reach("worker.step_finished")
        return written

    def _result(self, call: Call) -> ToolResult | None:
        """Return the result of a call, whose sub-run is started; None if there is none yet."""
        call_id = call["id"]
        if (known := self._results.get(call_id)) is not None or call_id in self._accepted:
            return known
        arguments = call["arguments"]
        try:
            delegating.start(self._process, self._run, self._persona, call_id, **arguments)
        except NotDelegated as refused:
            return ToolResult(call_id, DELEGATE, str(refused), True, 0)
        return None

    def _wait(self, calls: Sequence[Call], results: Mapping[str, ToolResult | None]) -> None:
        for result in filter(None, results.values()):
            self._run.end_tool_call(result)
        self._run.admission.settle()
        fault_points.reach("worker.before_park")
        pending = [call for call in calls if results[call["id"]] is None]
        raise WaitForInput(
            persona=self._persona,
            kind="tool_results",
            prompt="Waiting for sub-runs.",
            calls=[
                PendingCall(call["id"], DELEGATE, call["arguments"], ResultSource.RUN)
                for call in pending
            ],
        )
