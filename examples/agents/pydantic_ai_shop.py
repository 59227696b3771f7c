"""The shop's agent with Pydantic AI.

It needs `pydantic-ai-slim[openai]`, and `OPENAI_API_KEY` or `OPENAI_BASE_URL`.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
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
from pydantic_ai.usage import UsageLimits

from arkloop.agents import AgentRun, ToolFailed

from . import _call_ids, _model_calls, _open_calls, _shop


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
    calls = _model_calls.ModelCalls(run)
    # The persona's `max_steps` limits the turns; Pydantic AI would fail the run after 50.
    limits = UsageLimits(request_limit=None)
    async with agent.iter(message_history=history, usage_limits=limits) as nodes:
        with calls:
            async for node in nodes:
                if Agent.is_model_request_node(node):
                    is_new = True
                    _record_refused(run, node.request)
                    calls.begin(run.instructions, *_texts([*nodes.all_messages(), node.request]))
                    async with node.stream(nodes.ctx) as events:
                        async for event in events:
                            _stream(run, calls, event)
                elif Agent.is_call_tools_node(node):
                    if is_new:  # else these are the calls of an earlier execution
                        _count(calls, node.model_response)
                        _make_ids_unique(node.model_response, ids)
                    given |= _record(run, node.model_response)


def _texts(messages: list[ModelMessage]) -> Iterator[str]:
    for message in messages:
        for part in message.parts:
            if isinstance(text := getattr(part, "content", None), str):
                yield text


def _stream(run: AgentRun, calls: _model_calls.ModelCalls, event: Any) -> None:
    if isinstance(event, PartStartEvent):
        _receive(calls, event.part, "content", "args")
        if isinstance(event.part, TextPart):
            run.text(event.part.content)
    elif isinstance(event, PartDeltaEvent):
        _receive(calls, event.delta, "content_delta", "args_delta")
        if isinstance(event.delta, TextPartDelta):
            run.text(event.delta.content_delta)


def _receive(calls: _model_calls.ModelCalls, piece: Any, *names: str) -> None:
    for name in names:
        if isinstance(text := getattr(piece, name, None), str):
            calls.receive(text)


def _count(calls: _model_calls.ModelCalls, response: ModelResponse) -> None:
    used = response.usage
    calls.end(
        input_tokens=used.input_tokens,
        output_tokens=used.output_tokens,
        cache_read_tokens=used.cache_read_tokens,
        cache_write_tokens=used.cache_write_tokens,
        reasoning_tokens=used.details.get("reasoning_tokens", 0),
    )


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
    """Record the calls of a finished turn together, before they are made.

    Returns their arguments.
    """
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
