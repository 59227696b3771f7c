"""The shop's agent as a graph of LangGraph: model, tools, model, …

It needs `langgraph` and `langchain-openai`, and `OPENAI_API_KEY` or `OPENAI_BASE_URL`.
"""

import base64
import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    AnyMessage,
    HumanMessage,
    SystemMessage,
    ToolCall,
    ToolMessage,
)
from langchain_openai import ChatOpenAI
from langgraph.errors import GraphBubbleUp
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.prebuilt.tool_node import ToolCallRequest, ToolInvocationError
from langgraph.types import Command

from arkloop.agents import AgentRun, Message, ToolFailed

from . import _call_ids, _model_calls, _open_calls, _shop


def langgraph_shop(run: AgentRun) -> None:
    """Carry out a run; the last text that it streams is the answer."""
    model = ChatOpenAI(model=run.model, stream_usage=True).bind_tools(list(_shop.TOOLS.values()))

    steps, ids = _shop.Steps(run), _call_ids.CallIds(run)
    bad, calls = _bad_arguments(run), _model_calls.ModelCalls(run)

    def call_model(state: MessagesState) -> dict[str, Any]:
        message: Any = None
        messages = [SystemMessage(run.instructions), *state["messages"]]
        calls.begin(*(str(one.text) for one in messages))
        for chunk in model.stream(messages):
            message = chunk if message is None else message + chunk
            if calls.are_over:  # nobody reads the rest, and the provider would bill it
                break
        return {"messages": [_with_whole_calls(message, ids, bad)]}

    def call_tool(request: ToolCallRequest, execute: Callable[[ToolCallRequest], Any]) -> Any:
        call = request.tool_call
        if call["id"] in bad:
            given = bad[call["id"]]
            output = steps.make(call["name"], given, lambda: _refuse(given), call["id"])
            return ToolMessage(output, tool_call_id=call["id"], name=call["name"])
        return _call_tool(run, steps, request, execute)

    builder = StateGraph(MessagesState)
    builder.add_node("model", call_model)
    tools = ToolNode(list(_shop.TOOLS.values()), handle_tool_errors=False, wrap_tool_call=call_tool)
    builder.add_node("tools", tools)
    builder.add_conditional_edges(START, _first_node, ["tools", "model"])
    builder.add_conditional_edges("model", tools_condition)
    builder.add_edge("tools", "model")
    graph = builder.compile()

    # A lost run continues from its own turns: they are part of the conversation.
    state = {"messages": [_message(run, message) for message in _open_calls.conversation(run)]}
    stream = graph.stream(state, stream_mode=["messages", "updates"])
    with contextlib.closing(stream), calls:
        for mode, event in stream:
            if mode == "messages":
                _stream(run, calls, event[0])
            elif "model" in event:
                message = event["model"]["messages"][-1]
                calls.end(**_tokens(message))
                _record(run, message, bad)


def _stream(run: AgentRun, calls: _model_calls.ModelCalls, chunk: Any) -> None:
    if not isinstance(chunk, AIMessageChunk):
        return
    calls.receive(chunk.text + "".join(part["args"] or "" for part in chunk.tool_call_chunks))
    if chunk.text:
        run.text(chunk.text)
    else:
        run.check()  # the arguments of a call may be long


def _tokens(message: AIMessage) -> dict[str, int]:
    """Return the tokens that the provider reports; none if it reports none."""
    used = message.usage_metadata
    if used is None:
        return {}
    read, written = used.get("input_token_details", {}), used.get("output_token_details", {})
    return {
        "input_tokens": used["input_tokens"],
        "output_tokens": used["output_tokens"],
        "cache_read_tokens": read.get("cache_read") or 0,
        "cache_write_tokens": read.get("cache_creation") or 0,
        "reasoning_tokens": written.get("reasoning") or 0,
    }


def _bad_arguments(run: AgentRun) -> dict[str, Any]:
    """Return the arguments of recorded calls that are no object, which LangChain cannot have."""
    return {
        call["id"]: call["arguments"]
        for message in run.messages
        for call in message.get("tool_calls", ())
        if not isinstance(call["arguments"], dict)
    }


def _with_whole_calls(
    message: AIMessageChunk, ids: _call_ids.CallIds, bad: dict[str, Any]
) -> AIMessage:
    """Return the message with all of its calls; those without an object as arguments are in `bad`.

    LangChain completes arguments that break off, as where the model reaches its output limit:
    `{"order_id": "A1` would be a call about order A1, though the model meant A12.
    """
    calls = []
    is_cut = message.response_metadata.get("finish_reason") == "length"
    for part in message.tool_call_chunks:
        call_id = ids.new(part["id"])
        arguments = _arguments(part["args"] or ("" if is_cut else "{}"))
        if not isinstance(arguments, dict):
            bad[call_id], arguments = arguments, {}
        calls.append(ToolCall(name=part["name"] or "", args=arguments, id=call_id))
    return AIMessage(
        message.content,
        id=message.id,
        tool_calls=calls,
        usage_metadata=message.usage_metadata,
        response_metadata=message.response_metadata,
    )


def _arguments(text: str) -> Any:
    """Return the arguments of a call; text that is no JSON is recorded as it is."""
    try:
        # Some models put line breaks into strings as they are.
        return json.loads(text, strict=False)
    except ValueError:
        return text


def _refuse(arguments: Any) -> str:
    raise ToolFailed(f"Invalid arguments, which are no JSON object: {arguments!r:.200}")


def _first_node(state: MessagesState) -> str:
    """Return the node to begin with: a run that waited continues with its last turn's calls."""
    has_calls = state["messages"] and tools_condition(state) == "tools"  # there may be no message
    return "tools" if has_calls else "model"


def _call_tool(
    run: AgentRun,
    steps: _shop.Steps,
    request: ToolCallRequest,
    execute: Callable[[ToolCallRequest], Any],
) -> Any:
    """Call the tool as a step of the run: never twice under the same id.

    A tool may return a `Command`, whose update of the state is that of this execution alone.
    """
    call = request.tool_call
    returned: list[Any] = []
    control: list[GraphBubbleUp] = []

    def make() -> str:
        if denied := _shop.denial(run, call["name"], call["args"], call["id"]):
            return denied
        try:
            returned.append(execute(request))
        except ToolInvocationError as error:  # the model can correct its arguments
            raise ToolFailed(error.message) from None
        except GraphBubbleUp as error:
            control.append(error)
            raise
        return _text(returned[0], call["id"])

    output = steps.make(call["name"], call["args"], make, call["id"])
    if control:
        raise NotImplementedError(
            f"The tool {call['name']} has stopped the graph, as by `interrupt()`, which nothing"
            " would resume: to ask a person, call `run.ask` in the tool."
        ) from control[0]
    return (
        returned[0] if returned else ToolMessage(output, tool_call_id=call["id"], name=call["name"])
    )


def _text(returned: ToolMessage | Command[Any], call_id: str) -> str:
    """Return the text that is recorded of what a tool has returned."""
    if isinstance(returned, ToolMessage):
        return str(returned.text)
    update = returned.update if isinstance(returned.update, dict) else {}
    messages = [one for one in update.get("messages", ()) if isinstance(one, ToolMessage)]
    return "".join(str(one.text) for one in messages if one.tool_call_id == call_id)


def _record(run: AgentRun, message: AIMessage, bad: dict[str, Any]) -> None:
    """Record the calls of a finished turn together, before they are made."""
    for call in message.tool_calls:
        arguments = bad.get(call["id"], call["args"])
        run.tool_call(call["name"], arguments, tool_call_id=_call_ids.recorded(call["id"]))


def _message(run: AgentRun, message: Message) -> AnyMessage:
    if message["role"] == "user":
        if images := list(_images(run, message)):
            text = {"type": "text", "text": message["content"]}
            return HumanMessage(content_blocks=[text, *images])
        return HumanMessage(message["content"])
    if message["role"] == "tool":
        return ToolMessage(message["content"], tool_call_id=message["tool_call_id"])
    calls = [
        ToolCall(id=call["id"], name=call["name"], args=given if isinstance(given, dict) else {})
        for call in message.get("tool_calls", ())
        for given in [call["arguments"]]
    ]
    return AIMessage(message["content"], tool_calls=calls)


def _images(run: AgentRun, message: Message) -> Iterator[dict[str, Any]]:
    """Yield the images of a message; the model reads of other files that there are some."""
    for file in message.get("files", ()):
        if file["kind"] != "image":
            continue
        if "url" in file:
            yield {"type": "image", "url": file["url"]}
            continue
        with contextlib.suppress(LookupError):  # it was deleted
            data = base64.b64encode(run.file(file["file_id"])).decode()
            yield {"type": "image", "base64": data, "mime_type": file["media_type"]}
