"""The agent as a graph for LangGraph's own server, which knows nothing of this service."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from langchain_core.messages import SystemMessage
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from bench.frameworks.shop import TOOLS

_tools = list(TOOLS.values())
_model = ChatOpenAI(model="m", stream_usage=True).bind_tools(_tools)


def _call_model(state: MessagesState) -> dict[str, Any]:
    return {"messages": [_model.invoke([SystemMessage("Help."), *state["messages"]])]}


_builder = StateGraph(MessagesState)
_builder.add_node("model", _call_model)
_builder.add_node("tools", ToolNode(_tools))
_builder.add_edge(START, "model")
_builder.add_conditional_edges("model", tools_condition)
_builder.add_edge("tools", "model")
graph = _builder.compile()
