"""The request that Anthropic's Messages receive."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

from worker.contract.messages import (
    AssistantMessage,
    Message,
    ModelRequest,
    ToolCall,
    ToolMessage,
    ToolSpec,
    UserMessage,
)
from worker.providers.partial_calls import portable_arguments, portable_id, portable_name

#: The API demands a limit. Where neither persona nor route has one it is the model's own, by the
#: beginning of its name; the first that fits.
_MOST_OUTPUT_TOKENS = (
    ("claude-3-5-", 8_192),
    ("claude-3-7-", 64_000),
    ("claude-3-", 4_096),
    ("claude-opus-4-0", 32_000),
    ("claude-opus-4-1", 32_000),
    ("claude-opus-4-2025", 32_000),
    ("claude-", 64_000),
    ("", 4_096),
)
#: Even where our count says that less is left of the context: it counts rather too much.
_LEAST_OUTPUT_TOKENS = 1_024
_CACHED = {"cache_control": {"type": "ephemeral"}}
#: The API requires a user's message first and last, and no empty one.
_NOTHING_SAID = "(nothing)"
_GO_ON = "(go on)"
_NOT_FOR_USE = "No longer available."


def max_tokens(request: ModelRequest) -> int:
    """Return the limit that is sent: the request's, else the model's own."""
    if request.max_output_tokens is not None:
        return request.max_output_tokens
    known = next(most for start, most in _MOST_OUTPUT_TOKENS if request.model.startswith(start))
    if request.room_tokens is None:
        return known
    # Older models refuse a limit that does not fit into their context beside the input.
    return min(known, max(request.room_tokens, _LEAST_OUTPUT_TOKENS))


def arguments(request: ModelRequest) -> dict[str, Any]:
    """Return the arguments of `messages.create`."""
    sent: dict[str, Any] = {
        "model": request.model,
        "messages": _messages(request.messages),
        "max_tokens": max_tokens(request),
        "stream": True,
    }
    if request.system_prompt.strip():
        sent["system"] = request.system_prompt
    if tools := tools_of(request):
        sent["tools"] = [
            {
                "name": tool.name,
                "description": tool.description,
                "input_schema": dict(tool.parameters),
            }
            for tool in tools
        ]
    if request.tools:
        _cache(sent)
    elif tools:
        sent["tool_choice"] = {"type": "none"}
    return sent


def tools_of(request: ModelRequest) -> Sequence[ToolSpec]:
    """Return the request's tools, else those that the conversation calls: the API requires them."""
    if request.tools:
        return request.tools
    turns = [message for message in request.messages if isinstance(message, AssistantMessage)]
    names = dict.fromkeys(portable_name(call.name) for turn in turns for call in turn.tool_calls)
    return [ToolSpec(name, _NOT_FOR_USE, {"type": "object"}) for name in names]


def _cache(arguments: dict[str, Any]) -> None:
    """Have the vendor cache what is sent: with tools, the next step likely sends it again."""
    arguments["tools"][-1] |= _CACHED
    if "system" in arguments:
        arguments["system"] = [{"type": "text", "text": arguments["system"], **_CACHED}]
    arguments["messages"][-1]["content"][-1] |= _CACHED


def _messages(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Convert messages to turns without empty blocks, with the user first and last."""
    merged: list[dict[str, Any]] = []
    for message in messages:
        role = "assistant" if isinstance(message, AssistantMessage) else "user"
        blocks = _blocks(message)
        if not blocks:
            continue
        if not merged and role == "assistant":
            merged.append({"role": "user", "content": [_text(_NOTHING_SAID)]})
        if merged and merged[-1]["role"] == role:
            merged[-1]["content"] += blocks
        else:
            merged.append({"role": role, "content": blocks})
    if merged and merged[-1]["role"] == "assistant":
        merged.append({"role": "user", "content": [_text(_GO_ON)]})
    return merged or [{"role": "user", "content": [_text(_NOTHING_SAID)]}]


def _blocks(message: Message) -> list[dict[str, Any]]:
    match message:
        case UserMessage(content):
            return [_text(content)] if content.strip() else []
        case AssistantMessage(content, calls, state):
            blocks: list[dict[str, Any]] = []
            for part in [*((state and state.turn) or ()), len(content)]:
                if isinstance(part, int):
                    said, content = content[:part], content[part:]
                    blocks += [_text(said)] if said.strip() else []
                else:
                    blocks.append(part)
            for call, thoughts in zip_longest(calls, (state and state.calls) or ()):
                blocks += [*(thoughts or ()), _tool_use(call)]
            return blocks
        case ToolMessage(tool_call_id=call_id, content=content):
            result: dict[str, Any] = {"type": "tool_result", "tool_use_id": portable_id(call_id)}
            return [{**result, "content": content} if content else result]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {
        "type": "tool_use",
        "id": portable_id(call.id),
        "name": portable_name(call.name),
        "input": portable_arguments(call.arguments),
    }
