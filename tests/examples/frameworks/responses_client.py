"""Agents of the OpenAI Agents SDK on personas: `python -m responses_client <url> <key>`."""

import asyncio
import json
import sys
from typing import Any

from agents import (
    Agent,
    HostedMCPTool,
    Runner,
    SQLiteSession,
    function_tool,
    set_default_openai_client,
    set_tracing_disabled,
)
from openai import AsyncOpenAI, BadRequestError

SERVER: Any = {
    "type": "mcp",
    "server_label": "arkloop",
    "server_url": "http://127.0.0.1:8080",
    "require_approval": "always",
}
CALCULATE = {"tool": "calculator", "args": {"expression": "6*7"}}


@function_tool
def locate(exact: bool) -> str:
    """Return where the user is."""
    return f"Rome, {exact}"


def script(*steps: dict[str, Any]) -> str:
    return json.dumps({"script": steps})


async def session() -> list[Any]:
    """Call the same tool in each turn of a session."""
    agent, kept = Agent(name="A", model="scripted", tools=[locate]), SQLiteSession("kept")
    asked = [script({"tool": "locate", "args": {"exact": True}}, {"say": say}) for say in "abc"]
    return [(await Runner.run(agent, text, session=kept)).final_output for text in asked]


async def declared() -> str:
    """Execute a call of a tool that the persona declares itself."""
    agent = Agent(name="A", model="declares", tools=[locate])
    said = script({"tool": "locate", "args": {"exact": True}}, {"say": "Done."})
    return str((await Runner.run(agent, said)).final_output)


async def approval() -> list[Any]:
    """Approve a call of the persona's own tool."""
    agent = Agent(name="A", model="careful", tools=[HostedMCPTool(tool_config=SERVER)])
    asked = await Runner.run(agent, script(CALCULATE, {"say": "Done."}))
    state = asked.to_state()
    state.approve(asked.interruptions[0])
    return [len(asked.interruptions), (await Runner.run(agent, state)).final_output]


async def handoff(model: str) -> str | None:
    """Hand a turn over to an agent with this model; returns the field that was refused, if any."""
    first = Agent(name="A", model="scripted", handoffs=[Agent(name="B", model=model)])
    try:
        await Runner.run(first, script({"tool": "transfer_to_b", "args": {}}, {"say": "I am A."}))
    except BadRequestError as error:
        return error.param
    return None


async def main(url: str, key: str) -> None:
    set_default_openai_client(AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0))
    set_tracing_disabled(disabled=True)
    handoffs = [await handoff("scripted"), await handoff("careful")]
    print(json.dumps([await session(), await approval(), handoffs, await declared()]))


asyncio.run(main(*sys.argv[1:]))
