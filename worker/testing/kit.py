"""Runs of the agent loop in memory, with a script in place of a model, for tests of plugins."""

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from arkloop.shared import ids
from arkloop.shared.catalog import personas
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.catalog.prices import Prices
from arkloop.shared.events import types
from arkloop.shared.security.egress import Policy
from arkloop.worker.agent import loop
from arkloop.worker.agent.agent import Agent
from arkloop.worker.agent.conversation import Entry, History
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.agent.structured_output import OutputSchema
from arkloop.worker.contract.identity import RunIdentity
from arkloop.worker.contract.messages import UserMessage
from arkloop.worker.contract.outcomes import RunFailure, WaitForInput
from arkloop.worker.providers import Provider
from arkloop.worker.providers.scripted_provider import ScriptedProvider
from arkloop.worker.testing.memory_run import MemoryRun
from arkloop.worker.tools import AUTOMATIC_TOOLS, Tool, load

#: Later than every message of the thread.
_POSITION = 1_000_000
_INPUT_EXPIRES_AT = "2100-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of a tool call, as the model reads it; `files` are its images."""

    tool_name: str
    output: str
    is_error: bool
    files: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedRun:
    """A run that has been played; `events` are those that its clients would get.

    `status` is `completed`, `failed` or `waiting_for_input`; `output` is the text, or for a run
    with an output schema the object; `error` has the code of a failure, and its message.
    """

    status: str
    output: Any
    error: Mapping[str, Any] | None
    events: Sequence[Mapping[str, Any]] = field(repr=False)

    @property
    def results(self) -> list[Result]:
        """The results of the tool calls, in the order of their events."""
        return [
            Result(
                tool_name=data["name"],
                output=data["output"],
                is_error=data["is_error"],
                files=data.get("files") or (),
            )
            for data in self.data_of("tool.result")
        ]

    def data_of(self, event_type: str) -> list[Mapping[str, Any]]:
        """Return the data of each event of this type."""
        return [event["data"] for event in self.events if event["type"] == event_type]


def play(
    message: str | Sequence[Mapping[str, Any]],
    *,
    tools: Iterable[Tool] = (),
    provider: Provider | None = None,
    persona: Mapping[str, Any] | None = None,
    end_user_id: str | None = None,
    metadata: Mapping[str, str] | None = None,
    allowed_networks: Iterable[str] = (),
) -> PlayedRun:
    """Play a run with these tools, in memory: no server is needed.

    `message` is the user's, or the steps of a script for the scripted model, which plays it; a
    `provider` takes its place. `persona` has fields of a persona, such as `max_steps`.
    `allowed_networks`, in CIDR notation, are not public, and tools may reach them.
    """
    run = MemoryRun()
    route = Route(
        id="scripted",
        provider="scripted",
        model="scripted-1",
        prices=Prices(input=Decimal(1), output=Decimal(2)),
    )
    played = provider or ScriptedProvider()
    of = _persona(persona or {})
    text = message if isinstance(message, str) else json.dumps({"script": list(message)})
    agent = Agent(
        identity=RunIdentity(
            run_id=str(ids.new_id()),
            thread_id=str(ids.new_id()),
            org_id=str(ids.new_id()),
            end_user_id=end_user_id,
            metadata=metadata or {},
            trace_id=ids.new_trace_id(),
        ),
        persona=of,
        chain=RouteChain([route], lambda _route: played),
        tools={**load((*of.tools, *AUTOMATIC_TOOLS)), **{tool.spec.name: tool for tool in tools}},
        history=History([Entry(1, 1, [UserMessage(text)])]),
        position=_POSITION,
        output=OutputSchema(of.output_schema) if of.output_schema else None,
        egress=Policy.of(allowed_networks),
        draining=threading.Event(),
    )
    run.emit(types.RunStarted(of.id, route.id, route.model, metadata or {}))
    return _played(agent, run)


def call(
    tool: Tool,
    arguments: Mapping[str, Any],
    *,
    end_user_id: str | None = None,
    metadata: Mapping[str, str] | None = None,
    allowed_networks: Iterable[str] = (),
) -> Result:
    """Call a tool as a worker would: check the arguments, limit the time, cut the output.

    The model reads `output`. Of an exception other than `ToolFailed` that is the name of its class;
    the log has the traceback.
    """
    played = play(
        [{"tool": tool.spec.name, "args": dict(arguments)}],
        tools=[tool],
        end_user_id=end_user_id,
        metadata=metadata,
        allowed_networks=allowed_networks,
    )
    return played.results[0]


def _persona(fields: Mapping[str, Any]) -> Persona:
    return personas.read("test", "1", fields)


def _played(agent: Agent, run: MemoryRun) -> PlayedRun:
    status, output = "completed", None
    error: types.RunError | None = None
    try:
        answer = loop.run(agent, run, run.stop, [])
        output = answer.content if answer.output is None else answer.output
        message_id = answer.message_id if answer.content else None
        sums = (run.totals.usage, run.totals.cost_usd)
        completed = types.RunCompleted(message_id, *sums, answer.stop_reason, answer.output)
        run.emit(*answer.closing, completed)
    except RunFailure as failure:
        status, error = "failed", failure.as_error()
        run.emit(run.cost(), types.RunFailed(error, run.totals.usage, run.totals.cost_usd))
    except WaitForInput as waits:
        status = "waiting_for_input"
        request = waits.request(str(ids.new_id()), _INPUT_EXPIRES_AT)
        run.emit(types.RunWaitingForInput(**request))
    shown = {"code": error.code, "message": error.message} if error else None
    return PlayedRun(status=status, output=output, error=shown, events=run.events)
