"""A graph for LangGraph's own server that says one word, or 500 of them, 20 ms apart."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langgraph.graph import START, MessagesState, StateGraph

WORD = "hello "
#: The message that many words answer, and how many, with the seconds between two of them.
AT_LENGTH, MANY, PAUSE_SECONDS = "Speak at length.", 500, 0.02


class Words(BaseChatModel):  # type: ignore[misc]  # the package is in the server's environment
    """A model in the process of the graph, as the scripted provider is in the worker."""

    @property
    def _llm_type(self) -> str:
        return "words"

    def _generate(self, *_args: Any, **_kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(WORD))])

    async def _astream(
        self, messages: Any, *_args: Any, **_kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        is_long = messages[-1].content == AT_LENGTH
        for _ in range(MANY if is_long else 1):
            yield ChatGenerationChunk(message=AIMessageChunk(WORD))
            if is_long:
                await asyncio.sleep(PAUSE_SECONDS)


_model = Words()


async def _call_model(state: MessagesState) -> dict[str, Any]:
    return {"messages": [await _model.ainvoke(state["messages"])]}


_builder = StateGraph(MessagesState)
_builder.add_node("model", _call_model)
_builder.add_edge(START, "model")
graph = _builder.compile()
