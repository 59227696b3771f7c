"""Models and tools with which the tests of the loop run it."""

import json
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from arkloop.shared.catalog import personas
from arkloop.shared.events.types import Event, RunSteered, ToolResult
from arkloop.worker import tools
from arkloop.worker.agent import loop
from arkloop.worker.agent.agent import Agent
from arkloop.worker.agent.conversation import Turn, steered_by
from arkloop.worker.agent.loop import Answer
from arkloop.worker.contract.messages import (
    Message,
    ModelRequest,
    Steered,
    UserMessage,
)
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers.scripted_provider import ScriptedProvider
from arkloop.worker.tools import Tool
from tests.worker.recorded_run import RUN, RecordedRun, chain_of, history_of

#: Of the run in its thread, after everything else.
POSITION = 1_000_000
CALCULATE = {"tool": "calculator", "args": {"expression": "6*7"}}


class Model(ScriptedProvider):
    """The scripted model, with the requests that it got."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[ModelRequest] = []

    def stream(self, request: ModelRequest, stop: StopSignal) -> Any:
        self.requests.append(request)
        return super().stream(request, stop)

    def saw(self, number: int = -1) -> list[Message]:
        return list(self.requests[number].messages)


class SteeredRun(RecordedRun):
    """A run to which these messages are offered, each with the result of this number."""

    def __init__(self, messages: Mapping[int, str]) -> None:
        super().__init__()
        self._messages = messages
        self._offered: list[str] = []

    def emit(self, *happened: Event) -> int:
        seq = super().emit(*happened)
        if any(isinstance(event, ToolResult) for event in happened):
            message = self._messages.get(len(results(self)))
            self._offered += [] if message is None else [message]
        return seq

    def take_messages(self, steered: list[Steered], among: Collection[str] | None = None) -> None:
        for event in self.offered_messages(steered):
            assert among is None or event.message_id in among
            steered.append(steered_by(self.emit(event), event))
        self._offered.clear()

    def offered_messages(self, steered: Sequence[Steered]) -> Sequence[RunSteered]:
        first = len(steered)
        return [
            RunSteered(f"message-{number}", text)
            for number, text in enumerate(self._offered, first)
        ]


def agent_for(*steps: Any, extra: dict[str, Tool] | None = None, **changes: Any) -> Agent:
    """Build an agent that plays a script."""
    persona = replace(personas.builtin()[changes.pop("persona", "assistant@1")], **changes)
    return Agent(
        identity=RUN,
        persona=persona,
        chain=chain_of(Model()),
        tools={**tools.load(persona.tools), **(extra or {})},
        history=history_of(UserMessage(json.dumps({"script": steps}))),
        position=POSITION,
        draining=threading.Event(),
    )


def after(agent: Agent, *earlier: Message) -> Agent:
    """Return the agent in a thread that begins with these messages."""
    return replace(agent, history=history_of(*earlier, *agent.history.messages))


def run(agent: Agent, context: RecordedRun, turns: list[Turn] | None = None) -> Answer:
    return loop.run(agent, context, context.stop, [] if turns is None else turns)


def results(context: RecordedRun) -> list[tuple[str, str, bool]]:
    return [
        (event.tool_call_id, event.output, event.is_error)
        for event in context.events
        if isinstance(event, ToolResult)
    ]
