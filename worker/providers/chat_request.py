"""The request that chat completions receive."""

import json
from typing import Any

from arkloop.worker.contract.messages import (
    AssistantMessage,
    Message,
    ModelRequest,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from arkloop.worker.providers import output_modes
from arkloop.worker.providers.chat_call_ids import with_ids_for
from arkloop.worker.providers.chat_parts import content_of, images_after, users_joined
from arkloop.worker.providers.image_detail import detail_of_images
from arkloop.worker.providers.partial_calls import portable_arguments, portable_name
from arkloop.worker.providers.property_names import tools_for
from arkloop.worker.providers.sdk_client import with_extra

#: Settings that have the same name and form in the API.
_AS_THEY_ARE = ("temperature", "top_p", "seed", "stop", "reasoning_effort", "verbosity")
#: Of a call: Google puts its `thought_signature` there, and refuses the call without it.
SIGNED = "extra_content"


def body(request: ModelRequest, *, is_vendor: bool) -> dict[str, Any]:
    """Return the body of `POST /chat/completions`."""
    detail = detail_of_images(request.model, is_vendor=is_vendor)
    each = (
        message if isinstance(message, dict) else _message(message, detail)
        for message in images_after(with_ids_for(request.model, request.messages), detail)
    )
    messages = list(users_joined(each))
    if request.system_prompt:
        messages.insert(0, {"role": "system", "content": request.system_prompt})
    sent: dict[str, Any] = {
        "model": request.model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.tools:
        sent["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    # The vendor refuses a schema without this word.
                    "parameters": {"properties": {}, **tool.parameters},
                },
            }
            for tool in tools_for(request.model, request.tools)
        ]
    if request.max_output_tokens is not None:
        # Compatible servers know the older name alone.
        name = "max_completion_tokens" if is_vendor else "max_tokens"
        sent[name] = request.max_output_tokens
    return sent | with_extra(_settings(request), request.settings.get("extra_body", {}))


def _settings(request: ModelRequest) -> dict[str, Any]:
    sent = {name: value for name, value in request.settings.items() if name in _AS_THEY_ARE}
    if (schema := request.settings.get(output_modes.SETTING)) is not None:
        json_schema = output_modes.openai_format(schema)
        sent["response_format"] = {"type": "json_schema", "json_schema": json_schema}
    if not request.tools:
        return sent
    if "parallel_tool_calls" in request.settings:
        sent["parallel_tool_calls"] = request.settings["parallel_tool_calls"]
    match request.settings.get("tool_choice"):
        case {"name": name}:
            function = {"name": portable_name(name)}
            sent["tool_choice"] = {"type": "function", "function": function}
        case str(choice):
            sent["tool_choice"] = choice
    return sent


def _message(message: Message, detail: str) -> dict[str, Any]:
    match message:
        case UserMessage(content, parts):
            return {"role": "user", "content": content_of(parts, detail) if parts else content}
        case ToolMessage(tool_call_id=call_id, content=content):
            return {"role": "tool", "tool_call_id": call_id, "content": content}
        case AssistantMessage(content, ()):
            return {"role": "assistant", "content": content}
        case AssistantMessage(content, calls, state):
            of_turn = (state and state.turn) or {}
            signed = (state and state.calls) or (None,) * len(calls)
            return of_turn | {
                "role": "assistant",
                "content": content or None,
                "tool_calls": [_tool_call(*of_call) for of_call in zip(calls, signed, strict=True)],
            }


def _tool_call(call: ToolCall, signed: Any) -> dict[str, Any]:
    whole = {
        "id": call.id,
        "type": "function",
        "function": {
            "name": portable_name(call.name),
            "arguments": json.dumps(portable_arguments(call.arguments)),
        },
    }
    return whole if signed is None else {**whole, SIGNED: signed}
