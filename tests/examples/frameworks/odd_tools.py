"""The shop's tools as others write them: `python -m odd_tools <agent>` plays a run with them."""

import importlib
import json
import sys
from typing import Annotated, Any

from langchain_core.messages import ToolMessage
from langchain_core.tools import InjectedToolCallId, tool
from langgraph.types import Command, interrupt
from pydantic_ai import ModelRetry

from arkloop.testing import play_agent
from examples.agents import _shop


@tool("find_order")
def find_numbered(order_id: int) -> str:
    """Look up an order."""
    return f"Order {order_id}."


@tool("cancel_order")
def cancel_by_command(order_id: str, call_id: Annotated[str, InjectedToolCallId]) -> Command[Any]:
    """Cancel an order."""
    said = f"Order {order_id} is cancelled by a command."
    return Command(update={"messages": [ToolMessage(said, tool_call_id=call_id)]})


@tool("cancel_order")
def cancel_after_interrupt(order_id: str) -> str:
    """Cancel an order."""
    return f"{order_id}: {interrupt('Really?')}"


def find_known(order_id: str) -> str:
    """Look up an order."""
    raise ModelRetry(f"Order ids have the form A01, and {order_id} has not.")


AGENTS: dict[str, dict[str, Any]] = {
    "langgraph_shop": {"find_order": find_numbered, "cancel_order": cancel_by_command},
    "langgraph_shop_interrupted": {"cancel_order": cancel_after_interrupt},
    "pydantic_ai_shop": {"find_order": find_known},
}

if __name__ == "__main__":
    _shop.TOOLS.update(AGENTS[sys.argv[1]])
    agent = sys.argv[1].removesuffix("_interrupted")
    module = importlib.import_module(f"examples.agents.{agent}")
    played = play_agent(getattr(module, agent), "Cancel order A1.")
    results = {one.tool_name: [one.output, one.is_error] for one in played.results}
    print(json.dumps([played.status, results]))
