"""The shop's agent with the OpenAI Agents SDK.

It needs `openai-agents`, and `OPENAI_API_KEY` or `OPENAI_BASE_URL`.
"""

import asyncio
import json
from typing import Any

from agents import (
    Agent,
    FunctionTool,
    ModelResponse,
    ModelSettings,
    OpenAIChatCompletionsModel,
    RunConfig,
    RunHooks,
    Runner,
    function_tool,
)
from agents.function_schema import function_schema
from agents.tool_context import ToolContext
from openai import AsyncOpenAI
from pydantic import ValidationError

from arkloop.agents import AgentRun, ToolFailed

from . import _call_ids, _model_calls, _open_calls, _shop


async def openai_shop(run: AgentRun) -> None:
    """Carry out a run; the last text that it streams is the answer."""
    steps = _shop.Steps(run)
    async with AsyncOpenAI() as client:
        agent = Agent(
            name="shop",
            instructions=run.instructions,
            model=OpenAIChatCompletionsModel(run.model, client),
            # The SDK asks only OpenAI itself for the tokens of a stream.
            model_settings=ModelSettings(include_usage=True),
            tools=[_recorded(run, steps, function_tool(tool)) for tool in _shop.TOOLS.values()],
        )
        # A lost run continues from its own turns: they are part of the conversation.
        messages = _open_calls.conversation(run)
        items = [item for message in messages for item in _items(message)]
        # Calls of its last turn that have not begun are made first.
        for message in messages[-1:]:  # there may be none
            for made in message.get("tool_calls", ()):
                output = await _make(run, steps, made["name"], made["arguments"], made["id"])
                items.append(_output(made["id"], output))
        config = RunConfig(tracing_disabled=True)
        with _model_calls.ModelCalls(run) as calls:
            hooks = _Recorder(run, calls)
            # The persona's `max_steps` limits the turns; the SDK would fail the run after 10.
            result = Runner.run_streamed(
                agent, items, hooks=hooks, run_config=config, max_turns=None
            )
            async for event in result.stream_events():
                if event.type == "raw_response_event":
                    _stream(run, calls, event.data)


def _stream(run: AgentRun, calls: _model_calls.ModelCalls, event: Any) -> None:
    if isinstance(piece := getattr(event, "delta", None), str):
        calls.receive(piece)
    if event.type == "response.output_text.delta":
        run.text(event.delta)


class _Recorder(RunHooks[Any]):
    """The hooks that record what a finished turn cost, and its calls, before they are made."""

    def __init__(self, run: AgentRun, calls: _model_calls.ModelCalls) -> None:
        self._run, self._calls = run, calls

    async def on_llm_start(
        self, context: Any, agent: Any, system_prompt: str | None, input_items: list[Any]
    ) -> None:
        self._calls.begin(system_prompt or "", json.dumps(input_items, default=str))

    async def on_llm_end(self, context: Any, agent: Any, response: ModelResponse) -> None:
        used = response.usage
        self._calls.end(
            input_tokens=used.input_tokens,
            output_tokens=used.output_tokens,
            cache_read_tokens=used.input_tokens_details.cached_tokens,
            cache_write_tokens=used.input_tokens_details.cache_write_tokens,
            reasoning_tokens=used.output_tokens_details.reasoning_tokens,
        )
        for item in response.output:
            if item.type == "function_call":
                arguments = _arguments(item.arguments)
                call_id = _call_ids.recorded(item.call_id)
                self._run.tool_call(item.name, arguments, tool_call_id=call_id)


def _recorded(run: AgentRun, steps: _shop.Steps, tool: FunctionTool) -> FunctionTool:
    """Call the tool as a step of the run: never twice under the same id."""

    async def call(context: ToolContext[Any], arguments: str) -> str:
        return await _make(run, steps, tool.name, _arguments(arguments), context.tool_call_id)

    return FunctionTool(tool.name, tool.description, tool.params_json_schema, call)


def _arguments(text: str) -> Any:
    """Return the arguments of a call; text that is no JSON is recorded as it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text


async def _make(run: AgentRun, steps: _shop.Steps, name: str, arguments: Any, call_id: str) -> str:
    def make() -> str:
        tool = _shop.TOOLS[name]
        schema = function_schema(tool)
        try:
            checked = schema.params_pydantic_model.model_validate(arguments)
        except ValidationError as error:  # the model can correct its arguments
            raise ToolFailed(f"Invalid arguments: {error}") from None
        denied = _shop.denial(run, name, arguments, call_id)
        positional, named = schema.to_call_args(checked)
        return denied or tool(*positional, **named)

    return await asyncio.to_thread(steps.make, name, arguments, make, call_id)


def _items(message: Any) -> list[Any]:
    if message["role"] == "tool":
        return [_output(message["tool_call_id"], message["content"])]
    items: list[Any] = []
    if message["content"]:
        items.append({"role": message["role"], "content": message["content"]})
    for call in message.get("tool_calls", ()):
        arguments = call["arguments"]
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments)
        made = {"type": "function_call", "call_id": call["id"], "name": call["name"]}
        items.append({**made, "arguments": arguments})
    return items


def _output(call_id: str, output: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": output}
