"""Runs of custom agents in memory, for tests of agents."""

import json
import logging
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from arkloop.shared import ids
from arkloop.shared.agents import call_approvals, message_files
from arkloop.shared.agents.agent_call import AgentCall, AgentFunction
from arkloop.shared.agents.agent_run import (
    MAX_CHECKPOINT_BYTES,
    AgentRun,
    Call,
    DelegatedTask,
    Message,
    RunStopped,
    SubRunResult,
    is_stop,
)
from arkloop.shared.agents.approvals import ApprovalReply
from arkloop.shared.agents.call_approvals import MAX_ASKED, CallApprovals
from arkloop.shared.agents.questions import question_of
from arkloop.shared.agents.steps_and_costs import StepsAndCosts
from arkloop.shared.agents.transcript import Transcript, call_of, delegated_calls, json_of, shown
from arkloop.shared.catalog import personas, reported_costs
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.events import types
from arkloop.shared.events.tool_output import cut
from arkloop.shared.events.usage import Usage
from arkloop.shared.usd import parse, rounded
from arkloop.worker.agent.returned_answer import answer_of
from arkloop.worker.contract.identity import idempotency_key, traceparent
from arkloop.worker.contract.outcomes import RunFailure, WaitForInput
from arkloop.worker.testing.memory_run import MemoryRun
from arkloop.worker.testing.played_run import ROUTE, PlayedRun, completed, failed, waiting

log = logging.getLogger(__name__)

_PYTEST = sys.modules.get("pytest")


@dataclass(eq=False, kw_only=True)
class MemoryAgentRun(StepsAndCosts):
    """An `AgentRun` without a store.

    `answers` are people's, by the question or its key, or by the id of a call to approve;
    `sub_runs` are the outputs of sub-runs by the ids of their calls, `files` contents by their ids.
    """

    run: MemoryRun
    persona: Persona
    messages: Sequence[Message]
    answers: Mapping[str, str]
    sub_runs: Mapping[str, str | SubRunResult]
    files: Mapping[str, bytes]
    checkpoint_data: Any
    end_user_id: str | None
    metadata: Mapping[str, str]
    run_id: str = field(default_factory=lambda: str(ids.new_id()))
    thread_id: str = field(default_factory=lambda: str(ids.new_id()))
    org_id: str = field(default_factory=lambda: str(ids.new_id()))
    traceparent: str = ""
    attempt: int = 1
    model: str = ROUTE.model
    question: WaitForInput | None = None  # the one that ended the run
    awaited: Sequence[str] = ()  # the calls whose sub-runs ended the run
    last_turn: types.MessageCompleted | None = None  # if it calls no tool
    transcript: Transcript = field(default_factory=Transcript)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    # A test that fails or is skipped within a step ends there.
    _passing = (
        *StepsAndCosts._passing,
        *((_PYTEST.fail.Exception, _PYTEST.skip.Exception) if _PYTEST else ()),
    )

    def __post_init__(self) -> None:
        self.traceparent = traceparent(ids.new_trace_id(), self.run_id)
        replies = {call_id: [answer] * MAX_ASKED for call_id, answer in self.answers.items()}
        self._approvals = CallApprovals(self.transcript, replies)

    @property
    def instructions(self) -> str:
        return self.persona.system_prompt

    @property
    def model_settings(self) -> Mapping[str, Any]:
        return self.persona.model_settings

    @property
    def output_schema(self) -> Mapping[str, Any] | None:
        return self.persona.output_schema

    def file(self, file_id: str) -> bytes:
        """Return the content that the test gives for a file that the messages name."""
        self.check()
        message_files.find(self.messages, file_id)
        if file_id not in self.files:
            raise message_files.deleted(file_id)
        return self.files[file_id]

    @property
    def pending_calls(self) -> Sequence[Call]:
        return self.transcript.pending

    def text(self, text: str) -> None:
        """Stream a piece of the answer."""
        with self._lock:
            self.check()
            self.run.stream_text(text)

    def thinking(self, text: str) -> None:
        """Stream a piece of the model's reasoning."""
        with self._lock:
            self.check()
            self.run.stream_thinking(text)

    def tool_call(self, name: str, arguments: Any, *, tool_call_id: str | None = None) -> str:
        """Record that a tool is called."""
        with self._lock:
            self.check()
            call = call_of(name, arguments, tool_call_id)
            if not self._approvals.is_recorded(call):
                self.last_turn = None
                self.run.emit(*self.transcript.call(call, self.run.open_text))
            return call["id"]

    def tool_result(self, tool_call_id: str, output: str, *, is_error: bool = False) -> None:
        """Record the result of a call."""
        shown, characters = cut(output)
        with self._lock:
            self.run.note(
                *self.transcript.result(
                    tool_call_id, shown, is_error=is_error, characters=characters
                )
            )

    def _begin_step(
        self, name: str, arguments: Any, tool_call_id: str, *, is_idempotent: bool
    ) -> str | None:
        self.tool_call(name, arguments, tool_call_id=tool_call_id)
        return self.transcript.output_of(tool_call_id)

    def approve(self, name: str, arguments: Any, *, tool_call_id: str) -> ApprovalReply:
        """Return the reply that the test gives; without one the run ends, and waits."""
        with self._lock:
            call = call_of(name, arguments, tool_call_id)
            reply = self._approvals.reply_to(call)
            self.tool_call(name, arguments, tool_call_id=tool_call_id)
            if reply is None:
                self.question = WaitForInput(
                    persona=self.persona,
                    kind=call_approvals.KIND,
                    prompt=self._approvals.prompt(name, tool_call_id),
                    tool_call_id=tool_call_id,
                    options=list(call_approvals.OPTIONS),
                )
                raise RunStopped("waiting")
            if not reply.approved:
                self.tool_result(tool_call_id, call_approvals.denial(reply), is_error=True)
            return reply

    def _add_cost(self, usd: float | None, model: str | None, usage: Usage) -> None:
        cost = reported_costs.cost_of(usage, ROUTE, model=model, given_usd=usd) or Decimal(0)
        with self._lock:
            self.transcript.add_usage(usage)
            part = types.RouteCost(ROUTE.id, model or ROUTE.model, usage, cost)
            self.run.totals = self.run.totals.plus(part)
            self.run.note(self.run.cost())

    def reserve(self, usd: float) -> None:
        """Reserve nothing: a run in memory has no budget."""
        self.check()
        parse(rounded(usd))

    def checkpoint(self, data: Any) -> None:
        """Keep the data, as JSON would return it."""
        text = json_of(data)
        if len(text.encode()) > MAX_CHECKPOINT_BYTES:
            raise ValueError(f"A checkpoint has at most {MAX_CHECKPOINT_BYTES:,} bytes of JSON.")
        with self._lock:
            self.check()
            if self.run.open_text:
                self.last_turn = self.transcript.turn(self.run.open_text)
                self.run.emit(self.last_turn)
            self.checkpoint_data = json.loads(text)

    def ask(self, question: str, options: Sequence[str] = (), *, key: str | None = None) -> str:
        """Return the answer that the test gives; without one the run ends, and waits."""
        with self._lock:
            self.check()
            prompt, given, stored_key = question_of(question, options, key)
            name = question if key is None else key
            if name not in self.answers:
                self.question = WaitForInput(
                    persona=self.persona,
                    kind="question",
                    prompt=prompt,
                    tool_call_id=stored_key,
                    options=given or None,
                )
                self.check()
            return self.answers[name]

    def delegate_all(self, tasks: Sequence[DelegatedTask]) -> list[SubRunResult]:
        """Return the outputs that the test gives; without one the run ends, and waits."""
        with self._lock:
            self.check()
            calls = delegated_calls(tasks)
            if not self.persona.delegates:
                raise ValueError("The run's persona has no `delegates`.")
            new = self._approvals.new_of(calls)
            for call in new:
                self.last_turn = None
                self.run.emit(*self.transcript.call(call, self.run.open_text))
            ids_ = [call["id"] for call in calls]
            missing = [id_ for id_ in ids_ if self.transcript.output_of(id_) is None]
            self.awaited = [id_ for id_ in missing if id_ not in self.sub_runs]
            self.check()
            for call_id in missing:
                given = self.sub_runs[call_id]
                result = SubRunResult(given, False) if isinstance(given, str) else given
                self.tool_result(call_id, result.output, is_error=result.is_error)
            return self.transcript.sub_run_results(calls, self._read_whole) or []

    def _read_whole(self, call_ids: Sequence[str]) -> Mapping[str, str]:
        given = {call_id: self.sub_runs[call_id] for call_id in call_ids}
        return {id_: one if isinstance(one, str) else one.output for id_, one in given.items()}

    def idempotency_key(self, tool_call_id: str) -> str:
        """Return the key of a call, the same whenever it is repeated."""
        return idempotency_key(self.run_id, tool_call_id)

    def check(self) -> None:
        """Raise if the run waits for a person, or for sub-runs."""
        if self.question is not None or self.awaited:
            raise RunStopped("waiting")

    def wait(self, seconds: float) -> None:
        """Continue at once: nothing can stop a run in memory meanwhile."""
        self.check()


def play_agent(
    function: AgentFunction,
    message: str | Sequence[Message],
    *,
    answers: Mapping[str, str] | None = None,
    sub_runs: Mapping[str, str | SubRunResult] | None = None,
    files: Mapping[str, bytes] | None = None,
    checkpoint: Any = None,
    persona: Mapping[str, Any] | None = None,
    end_user_id: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> PlayedRun:
    """Play a run of an agent, a function or a coroutine function, in memory.

    A test that is a coroutine plays an agent that is one by `await asyncio.to_thread(play_agent,
    …)`.

    `message` is the user's, or the whole conversation. A question whose text or key is not among
    the `answers`, and an approval whose call's id is not, ends the run with `waiting_for_input`.
    `sub_runs` are the outputs of sub-runs, by
    the `tool_call_id` of their tasks; the run ends `running` with `run.suspended` where one is
    missing. The persona needs `delegates`; whom they name is not checked. `files` are the contents
    of files that messages name, by their ids; one that is missing counts as deleted. `checkpoint`
    is the data of an earlier execution; that of the run's last checkpoint is in the result.

    The agent is called once, with all answers at hand. A service calls it again from its beginning
    after each answer and for the results of sub-runs, which this does not show.
    """
    run = MemoryRun()
    of = personas.read("test", "1", persona or {})
    messages = [Message(role="user", content=message)] if isinstance(message, str) else message
    agent_run = MemoryAgentRun(
        run=run,
        persona=of,
        messages=messages,
        answers=answers or {},
        sub_runs=sub_runs or {},
        files=files or {},
        checkpoint_data=checkpoint,
        end_user_id=end_user_id,
        metadata=metadata or {},
    )
    run.emit(types.RunStarted(of.id, ROUTE.id, ROUTE.model, metadata or {}))
    try:
        returned = _returned(function, agent_run)
        if agent_run.awaited:
            run.emit(types.RunSuspended(list(agent_run.awaited)))
            played = PlayedRun(status="running", events=run.events)
        elif agent_run.question is None:
            run.note(*agent_run.transcript.close())
            last, schema = agent_run.last_turn, agent_run.output_schema
            answer = answer_of(returned, run, agent_run.transcript, last, schema)
            played = completed(run, answer)
        else:  # whatever it returned then
            played = waiting(run, agent_run.question)
    except RunFailure as failure:
        played = failed(run, failure)
    return replace(played, checkpoint=agent_run.checkpoint_data)


def _returned(function: AgentFunction, agent_run: AgentRun) -> Any:
    """Return what the agent returns. Raises: RunFailure: it raised."""
    try:
        return AgentCall(function)(agent_run)
    except BaseException as error:
        if is_stop(error):
            return None
        if not isinstance(error, Exception):
            raise
        log.exception("the agent raised")
        message = f"The agent failed: {shown(error)}"
        raise RunFailure("agent.failed", message) from error
