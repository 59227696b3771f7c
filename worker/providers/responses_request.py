"""The request that OpenAI's Responses API receives."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from arkloop.shared.events.types import ProviderState
from arkloop.worker.contract.attachments import Attachment, Part, TextPart
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Message,
    ModelRequest,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from arkloop.worker.providers import output_modes
from arkloop.worker.providers.image_detail import detail_of_images
from arkloop.worker.providers.partial_calls import portable_arguments, portable_name
from arkloop.worker.providers.property_names import tools_for
from arkloop.worker.providers.sdk_client import with_extra
from arkloop.worker.providers.unique_call_ids import with_unique_ids

#: The API refuses a lower limit of the output.
_LEAST_OUTPUT_TOKENS = 16
#: The API requires an input, and a thread may have no messages.
_NOTHING_SAID = "(nothing)"


def most_output(request: ModelRequest) -> int | None:
    """Return the limit of the output that is sent, None if the request has none."""
    most = request.max_output_tokens
    return most and max(most, _LEAST_OUTPUT_TOKENS)


def body(request: ModelRequest, *, is_vendor: bool) -> dict[str, Any]:
    """Return the body of `POST /responses`.

    From GPT-6.2 on, OpenAI puts `instructions` after the input, where they are never cached
    (https://developers.openai.com/api/docs/guides/latest-model/gpt-6.2-astra). A message in front
    of the input is cached, but a run with another prompt changes the prefix, and these models drop
    the reasoning after it (https://developers.openai.com/api/docs/guides/keep-prefix-unchanged).
    Earlier models read both in front of the input. Other servers may not know the role.
    """
    detail = detail_of_images(request.model, is_vendor=is_vendor)
    messages = with_unique_ids(request.messages)
    items = [item for message in messages for item in _items(message, detail)]
    sent: dict[str, Any] = {
        "model": request.model,
        "input": items or [{"type": "message", "role": "user", "content": _NOTHING_SAID}],
        "stream": True,
        "store": False,
    }
    if request.system_prompt and is_vendor:
        prompt = {"type": "message", "role": "developer", "content": request.system_prompt}
        sent["input"] = [prompt, *sent["input"]]
    elif request.system_prompt:
        sent["instructions"] = request.system_prompt
    if request.tools:
        sent["tools"] = [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": {"properties": {}, **tool.parameters},
                # Otherwise the vendor makes every argument required.
                "strict": False,
            }
            for tool in tools_for(request.model, request.tools)
        ]
    if (most := most_output(request)) is not None:
        sent["max_output_tokens"] = most
    return with_extra({**sent, **_settings(request)}, request.settings.get("extra_body", {}))


def _settings(request: ModelRequest) -> dict[str, Any]:
    settings = request.settings
    sent = {name: settings[name] for name in ("temperature", "top_p") if name in settings}
    if "reasoning_effort" in settings:
        sent["reasoning"] = {"effort": settings["reasoning_effort"]}
    if "verbosity" in settings:
        sent["text"] = {"verbosity": settings["verbosity"]}
    if output_modes.SETTING in settings:
        output = output_modes.openai_format(settings[output_modes.SETTING])
        sent = with_extra(sent, {"text": {"format": {"type": "json_schema", **output}}})
    if request.tools and "parallel_tool_calls" in settings:
        sent["parallel_tool_calls"] = settings["parallel_tool_calls"]
    match request.tools and settings.get("tool_choice"):
        case {"name": name}:
            sent["tool_choice"] = {"type": "function", "name": portable_name(name)}
        case str(choice):
            sent["tool_choice"] = choice
    return sent


def _items(message: Message, detail: str) -> Iterator[dict[str, Any]]:
    match message:
        case UserMessage(content, parts):
            said = [_input(part, detail) for part in parts] or content
            yield {"type": "message", "role": "user", "content": said}
        case ToolMessage(tool_call_id=call_id, content=content, parts=parts):
            output = [_input(part, detail) for part in (TextPart(content), *parts)]
            result = output if parts else content
            yield {"type": "function_call_output", "call_id": call_id, "output": result}
        case AssistantMessage(content, calls, None):
            yield from _message(content)
            yield from (_function_call(call) for call in calls)
        case AssistantMessage(content, calls, ProviderState(turn=turn, calls=places)):
            yield from _as_it_came(content, calls, turn or (), places)


def _input(part: Part, detail: str) -> dict[str, Any]:
    match part:
        case TextPart(text):
            return {"type": "input_text", "text": text}
        case Attachment(kind="image"):
            return {"type": "input_image", "image_url": part.address, "detail": detail}
        case Attachment(url=None):
            return {"type": "input_file", "filename": part.name, "file_data": part.address}
        case Attachment(url=url):
            return {"type": "input_file", "file_url": url}


def _as_it_came(
    content: str, calls: Iterable[ToolCall], kept: Iterable[Any], places: Iterable[Any]
) -> Iterator[dict[str, Any]]:
    """Yield the items of a turn in their original order, with the ids that the vendor gave them.

    The vendor refuses a function call without the reasoning before it, and reasoning without the
    item after it; so items after the last remaining call are left out, except for their text.
    """
    before = list(kept)
    for call, (number, item_id) in zip(calls, places, strict=True):
        while before and before[0][0] <= number:
            _, item = before.pop(0)
            if item["type"] == "message":
                said, content = content[: item["characters"]], content[item["characters"] :]
                yield from _message(said[item.get("gap", 0) :], item)
            else:
                yield item
        yield {**_function_call(call), **({"id": item_id} if item_id else {})}
    gap = next((item.get("gap", 0) for _, item in before if item.get("characters")), 0)
    yield from _message(content[gap:])


def _message(text: str, item: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """Yield what the model said as a message item, if it said anything."""
    if not text:
        return
    part = {"type": "output_text", "text": text, "annotations": []}
    message = {"type": "message", "role": "assistant", "content": [part]}
    if item and "id" in item:
        message |= {"id": item["id"], "status": "completed"}
    if item and "phase" in item:
        message["phase"] = item["phase"]
    yield message


def _function_call(call: ToolCall) -> dict[str, Any]:
    return {
        "type": "function_call",
        "call_id": call.id,
        "name": portable_name(call.name),
        "arguments": json.dumps(portable_arguments(call.arguments)),
    }
