"""Runs of the agent loop in memory, with a script in place of a model, for tests of plugins."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import replace
from typing import Any

from arkloop.shared import ids
from arkloop.shared.catalog import personas
from arkloop.shared.events import types
from arkloop.shared.security.egress import FETCH_ALLOWED_NETWORKS, Policy
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
from arkloop.worker.testing.played_run import (
    ROUTE,
    PlayedRun,
    Result,
    completed,
    failed,
    waiting,
)
from arkloop.worker.tools import AUTOMATIC_TOOLS, Tool, ToolFailed, load

#: Later than every message of the thread.
_POSITION = 1_000_000

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


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
    `provider` takes its place. `persona` has fields of a persona, such as `max_steps`, of
    which `tools` and `require_approval` may name these tools, too. `allowed_networks`, in CIDR
    notation, are not public, and tools may reach them. Coroutines are awaited in an event loop of
    the process, in a thread of its own, and cancelled after their tool's `timeout_seconds`.
    """
    run = MemoryRun()
    played = provider or ScriptedProvider()
    given = {tool.spec.name: _awaited(tool) for tool in tools}
    fields = persona or {}
    named, approved = fields.get("tools") or [], fields.get("require_approval")
    if isinstance(named, list) and isinstance(approved, list):
        # A persona may require approval of its own tools alone.
        named = [*named, *(name for name in given if name in approved and name not in named)]
    of = personas.read("test", "1", {**fields, "tools": named})
    loaded = load(name for name in (*of.tools, *AUTOMATIC_TOOLS) if name not in given)
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
        chain=RouteChain([ROUTE], lambda _route: played),
        tools={**loaded, **given},
        history=History([Entry(1, 1, [UserMessage(text)])]),
        position=_POSITION,
        output=OutputSchema(of.output_schema) if of.output_schema else None,
        egress=Policy.of(allowed_networks, FETCH_ALLOWED_NETWORKS),
        draining=threading.Event(),
    )
    run.emit(types.RunStarted(of.id, ROUTE.id, ROUTE.model, metadata or {}))
    try:
        return completed(run, loop.run(agent, run, run.stop, []))
    except RunFailure as failure:
        return failed(run, failure)
    except WaitForInput as question:
        return waiting(run, question)


def _awaited(tool: Tool) -> Tool:
    """Return the tool as one whose function awaits its coroutine; another tool as it is."""
    if not tool.is_async:
        return tool
    shared = _event_loop()

    def made(*given: Any) -> Any:
        coroutine: Any = tool(*given)
        task = asyncio.run_coroutine_threadsafe(coroutine, shared)
        try:
            if not wait([task], tool.timeout_seconds).done:  # the agent loop is mostly first
                raise ToolFailed(f"The tool did not return within {tool.timeout_seconds:g} s.")
            return task.result()
        finally:
            task.cancel()

    return replace(tool, function=made, is_async=False)


def _event_loop() -> asyncio.AbstractEventLoop:
    """Return the loop of all calls: a client of a module is bound to the loop of its first call."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_run, args=(_loop,), name="tools", daemon=True).start()
        return _loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    while True:
        with contextlib.suppress(SystemExit, KeyboardInterrupt):  # of a task, which has it, too
            loop.run_forever()


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
