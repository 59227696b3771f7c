"""The writing of a custom agent's run: what the agent does becomes events of the attempt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from arkloop.shared import fault_points, usd
from arkloop.shared.agents import call_approvals, message_files
from arkloop.shared.agents.agent_run import (
    MAX_CHECKPOINT_BYTES,
    UNKNOWN_OUTCOME,
    Call,
    DelegatedTask,
    SubRunResult,
)
from arkloop.shared.agents.approvals import ApprovalReply
from arkloop.shared.agents.call_approvals import CallApprovals
from arkloop.shared.agents.questions import answer_to, question_of
from arkloop.shared.agents.transcript import (
    RecordedCall,
    Transcript,
    call_of,
    delegated_calls,
    json_of,
)
from arkloop.shared.catalog import reported_costs
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.errors import Unavailable
from arkloop.shared.events import types
from arkloop.shared.events.plain import clean
from arkloop.shared.events.tool_output import cut
from arkloop.shared.events.usage import Usage
from arkloop.shared.runs import agent_costs, checkpoints, whole_results
from arkloop.shared.storage.connections import Transaction
from arkloop.worker.agent import loop
from arkloop.worker.agent.loop import Answer
from arkloop.worker.agent.returned_answer import answer_of
from arkloop.worker.attempt.agent_delegation import AgentDelegation
from arkloop.worker.attempt.claimed_run import ClaimedRun
from arkloop.worker.contract.attachments import Attachment
from arkloop.worker.contract.outcomes import LimitExceeded, ShuttingDown, WaitForInput
from arkloop.worker.process.process import WorkerProcess

#: As agent workers may send it; the rest of a longer name is not recorded.
MAX_MODEL_CHARACTERS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """The state that earlier executions of the run have left."""

    calls: Sequence[RecordedCall] = ()
    answers: Mapping[tuple[str | None, str], str]
    approvals: Mapping[str, Sequence[str]] = field(default_factory=dict)
    checkpoint: str | None = None
    last_turn: types.MessageCompleted | None = None  # if it called no tool


class AgentRecording:
    """The record of one execution; all methods are called by the thread of the attempt."""

    def __init__(
        self,
        process: WorkerProcess,
        run: ClaimedRun,
        persona: Persona,
        route: Route | None,
        beginning: Beginning,
    ) -> None:
        self.transcript = Transcript(beginning.calls)
        self.delegation = AgentDelegation(process, run, persona, self.transcript)
        self._process, self._run = process, run
        self._persona, self._route = persona, route
        self._answers = beginning.answers
        self._approvals = CallApprovals(self.transcript, beginning.approvals)
        self._last_turn = beginning.last_turn  # if it calls no tool

    # ---- what the agent does ----

    def check(self) -> None:
        self._run.check()

    def file(self, file: Mapping[str, Any]) -> bytes:
        content = self._content(file)
        if content is None:
            raise message_files.deleted(file["file_id"])
        return content

    def text(self, text: str) -> None:
        self._run.check()
        self._run.stream_text(_text(text))

    def thinking(self, text: str) -> None:
        self._run.check()
        self._run.stream_thinking(_text(text))

    def tool_call(self, name: str, arguments: Any, call_id: str | None) -> str:
        self._run.check()
        call = call_of(name, arguments, call_id)
        if not self._approvals.is_recorded(call):
            self._begin(call)
        return call["id"]

    def begin_step(
        self, name: str, arguments: Any, call_id: str, *, is_idempotent: bool
    ) -> str | None:
        """Begin the call; return its output if it is not to be made."""
        self._run.check()
        call = call_of(name, arguments, call_id)
        if not self._approvals.is_recorded(call):
            self._begin(call)
            self.transcript.begin(call_id)
            fault_points.reach("worker.tool_begun")
            return None
        if (output := self.transcript.output_of(call_id)) is not None:
            return output
        if self.transcript.is_unbegun(call_id):
            return self._begin_earlier(call_id)
        if self.transcript.is_lost(call_id) and not is_idempotent:
            self.tool_result(call_id, UNKNOWN_OUTCOME, is_error=True)
            return UNKNOWN_OUTCOME
        self.transcript.begin(call_id)
        return None

    def _begin_earlier(self, call_id: str) -> str | None:
        """Begin a call that an earlier execution has not; return its output if it was denied."""
        denied = self._approvals.denial(call_id)
        if denied is not None:
            self.tool_result(call_id, denied, is_error=True)
        else:
            self._run.begin_tool_call(call_id)
            self.transcript.begin(call_id)
            fault_points.reach("worker.tool_begun")
        return denied

    def tool_result(self, call_id: str, output: str, *, is_error: bool) -> None:
        fault_points.reach("worker.tool_returned")
        shown, characters = cut(_text(output))
        ended = self.transcript.result(call_id, shown, is_error=is_error, characters=characters)
        if ended:
            self._run.note(*ended)
            self._run.checkpoint()
            fault_points.reach("worker.step_finished")

    def cost(self, given_usd: float | None, model: str | None, usage: Usage) -> None:
        run = self._run
        cost = reported_costs.cost_of(usage, self._route, model=model, given_usd=given_usd)
        if cost is None:
            run.admission.check_unpriced(model or run.claim.model)
        self.transcript.add_usage(usage)
        name = clean(str(model or ""))[:MAX_MODEL_CHARACTERS] or run.claim.model
        name = agent_costs.model_counted(run.totals, run.claim.route_id, name)
        part = types.RouteCost(run.claim.route_id, name, usage, cost or Decimal(0))
        group = self._route.group if self._route else "other"  # it no longer exists
        run.note(run.admission.add_reported(part, group))
        run.log.flush()
        run.admission.reserve_spent()

    def reserve(self, most: float) -> None:
        self._run.check()
        self._run.admission.reserve_usd(usd.parse(usd.rounded(most)))

    def checkpoint(self, data: Any) -> None:
        run = self._run
        run.check()
        text = json_of(data)
        if len(text.encode()) > MAX_CHECKPOINT_BYTES:
            raise ValueError(f"A checkpoint has at most {MAX_CHECKPOINT_BYTES:,} bytes of JSON.")

        def store(tx: Transaction) -> None:
            checkpoints.store(tx, run.claim.run_id, run.claim.fence, text)

        if run.open_text:
            self._settle()
            self._last_turn = self.transcript.turn(run.open_text)
            # Stored one after the other, the text would be said twice if the worker ended between.
            run.checkpoint_with(store, self._last_turn)
        else:
            run.checkpoint_with(store)
        if self._process.draining.is_set():
            raise ShuttingDown()

    def ask(self, question: str, options: Sequence[str], key: str | None) -> str:
        self._run.check()
        if (answer := answer_to(question, key, self._answers)) is not None:
            return answer
        prompt, given, stored_key = question_of(question, options, key)
        self._run.admission.settle()  # others may use it meanwhile
        raise WaitForInput(
            persona=self._persona,
            kind="question",
            prompt=prompt,
            tool_call_id=stored_key,
            options=given or None,
        )

    def approve(self, name: str, arguments: Any, call_id: str) -> ApprovalReply:
        self._run.check()
        call = call_of(name, arguments, call_id)
        reply = self._approvals.reply_to(call)
        if reply is None:
            if not self.transcript.has_call(call_id):
                self._record(call)
            self.transcript.await_approval(call_id)
            self._run.admission.settle()  # others may use it meanwhile
            raise WaitForInput(
                persona=self._persona,
                kind=call_approvals.KIND,
                prompt=self._approvals.prompt(name, call_id),
                tool_call_id=call_id,
                options=list(call_approvals.OPTIONS),
                tool_name=name,
                arguments=call["arguments"],
            )
        if not reply.approved:
            self.tool_result(call_id, call_approvals.denial(reply), is_error=True)
        return reply

    def delegate_all(self, tasks: Sequence[DelegatedTask]) -> list[SubRunResult]:
        self._run.check()
        calls = delegated_calls(tasks)
        new = self._approvals.new_of(calls)
        for call_id, denied in self._approvals.denied_of(calls):
            self.tool_result(call_id, denied, is_error=True)
        missing = [call for call in calls if self.transcript.output_of(call["id"]) is None]
        for call in missing:
            self.delegation.begin(call)
            if call not in new:  # before a new call of another turn settles it
                self.transcript.begin(call["id"], is_step=False)
        for call in new:
            self._begin(call)
            self.transcript.begin(call["id"], is_step=False)
        if missing:
            self.delegation.settle(missing)
        results = self.transcript.sub_run_results(calls, self._read_whole)
        assert results is not None
        return results

    # ---- at its end ----

    def answer(self, returned: Any) -> Answer:
        """Make the run's answer of what the agent has returned."""
        self._run.check()
        if left := self.transcript.close():
            self._run.note(*left)
        schema = self._persona.output_schema
        return answer_of(returned, self._run, self.transcript, self._last_turn, schema)

    def cut_off(self, reason: str, cost: types.Event, *events: types.Event) -> Answer:
        """Make the run's answer of its text so far: it has reached a limit.

        The `events` follow the results of calls that have none: the run's next attempt may land by
        them.
        """
        if closing := [*self.transcript.cut_off(), *events]:
            self._run.note(*closing)
        return loop.cut_off(self._persona, self._run, reason, cost, self._last_turn)

    # ---- pieces ----

    def _content(self, file: Mapping[str, Any]) -> bytes | None:
        """Return the content of a file, None if it was deleted; retried as writes are."""
        while True:
            self._run.check()
            try:
                with self._run.files.loaded([Attachment(**file)]) as contents:
                    return contents.get(file["file_id"])
            except Unavailable as outage:
                self._run.pause_for(outage)

    def _read_whole(self, call_ids: Sequence[str]) -> Mapping[str, str]:
        """Return results of sub-runs; retried as writes are."""
        while True:
            self._run.check()
            try:
                with self._process.connections.reading() as sql:
                    return whole_results.read(sql, self._run.claim.run_id, call_ids)
            except Unavailable as outage:
                self._run.pause_for(outage)

    def _settle(self, *, is_turn_over: bool = True) -> None:
        if ended := self.transcript.settle(is_turn_over=is_turn_over):
            self._run.note(*ended)

    def _begin(self, call: Call) -> None:
        self._record(call)
        self._run.checkpoint()

    def _record(self, call: Call) -> None:
        run = self._run
        self._settle(is_turn_over=self.transcript.begins_turn(run.open_text))
        if (
            self.transcript.begins_turn(run.open_text)
            and run.totals.steps >= self._persona.max_steps
        ):
            raise LimitExceeded(
                "run.max_steps",
                f"The run reached its persona's limit of {self._persona.max_steps} steps.",
            )
        self._last_turn = None
        run.emit(*self.transcript.call(call, run.open_text))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"Must be a string, and is a {type(value).__name__}.")
    return value
