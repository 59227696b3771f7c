"""The shop's agent with Pydantic AI.

It needs `pydantic-ai-slim[openai]`, and `OPENAI_API_KEY` or `OPENAI_BASE_URL`.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from pydantic_ai import Agent, ModelRetry, RunContext, Tool
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.openai import OpenAIChatModel

from arkloop.agents import AgentRun, ToolFailed

from . import _call_ids, _open_calls, _shop


async def pydantic_ai_shop(run: AgentRun) -> None:
    """Carry out a run; the last text that it streams is the answer."""
    steps = _shop.Steps(run)
    given: dict[str, Any] = {}  # the arguments of calls, as the model has sent them
    tools = [_recorded(run, steps, given, name, tool) for name, tool in _shop.TOOLS.items()]
    agent = Agent(OpenAIChatModel(run.model), instructions=run.instructions, tools=tools)
    # A lost run continues from its own turns: they are part of the conversation. Calls of the last
    # one that have not begun are made first.
    history = [_message(message) for message in _open_calls.conversation(run)]
    ids, is_new = _call_ids.CallIds(run), False
    async with agent.iter(message_history=history) as nodes:
        async for node in nodes:
            if Agent.is_model_request_node(node):
                is_new = True
                _record_refused(run, node.request)
                async with node.stream(nodes.ctx) as events:
                    async for event in events:
                        _stream(run, event)
            elif Agent.is_call_tools_node(node):
                if is_new:  # else these are the calls of an earlier execution
                    _make_ids_unique(node.model_response, ids)
                given |= _record(run, node.model_response)


def _stream(run: AgentRun, event: Any) -> None:
    if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
        run.text(event.part.content)
    elif isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
        run.text(event.delta.content_delta)


def _make_ids_unique(response: ModelResponse, ids: _call_ids.CallIds) -> None:
    for part in response.parts:
        if isinstance(part, ToolCallPart):
            part.tool_call_id = ids.new(part.tool_call_id)


def _record_refused(run: AgentRun, request: ModelRequest) -> None:
    """Record the results of calls that no tool has: of an unknown tool, or with bad arguments."""
    for part in request.parts:
        if isinstance(part, ToolReturnPart) and part.outcome != "success":
            call_id = _call_ids.recorded(part.tool_call_id)
            run.tool_result(call_id, part.model_response_str(), is_error=True)


def _record(run: AgentRun, response: ModelResponse) -> dict[str, Any]:
    """Record what a finished turn cost, and its calls together, before they are made.

    Returns their arguments.
    """
    used = response.usage
    if used.has_values():  # not that of an earlier execution
        run.cost(input_tokens=used.input_tokens, output_tokens=used.output_tokens)
    given = {}
    for part in response.parts:
        if isinstance(part, ToolCallPart):
            given[part.tool_call_id] = arguments = part.args_as_dict()
            call_id = _call_ids.recorded(part.tool_call_id)
            run.tool_call(part.tool_name, arguments, tool_call_id=call_id)
    return given


def _recorded(
    run: AgentRun,
    steps: _shop.Steps,
    given: Mapping[str, Any],
    name: str,
    function: Callable[[str], str],
) -> Tool[None]:
    """Call the tool as a step of the run: never twice under the same id."""

    def make(order_id: str, call_id: str) -> str:
        try:
            denied = _shop.denial(run, name, {"order_id": order_id}, call_id)
            return denied or function(order_id)
        except ModelRetry as error:  # the model reads how to call the tool
            raise ToolFailed(error.message) from None

    async def call(context: RunContext[None], order_id: str) -> str:
        call_id = context.tool_call_id or ""
        return await asyncio.to_thread(
            steps.make,
            name,
            given[call_id],
            lambda: make(order_id, call_id),
            call_id,
        )

    return Tool(call, name=name, description=function.__doc__)


def _message(message: Any) -> ModelMessage:
    if message["role"] == "user":
        return ModelRequest([UserPromptPart(message["content"])])
    if message["role"] == "tool":
        name, call_id = message["name"], message["tool_call_id"]
        return ModelRequest([ToolReturnPart(name, message["content"], call_id)])
    calls = [
        ToolCallPart(call["name"], call["arguments"], call["id"])
        for call in message.get("tool_calls", ())
    ]
    text = [TextPart(message["content"])] if message["content"] else []
    return ModelResponse([*text, *calls])
