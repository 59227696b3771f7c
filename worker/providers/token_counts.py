"""The number of tokens of a call, without its tokenizer: an estimate, and an upper bound.

A tokenizer of today works on bytes: no token is shorter than one byte of UTF-8,
but for the few that mark where a message, a tool or the prompt begins and ends.
What a vendor has counted already is bounded by its count.
"""

import json
from collections.abc import Iterator
from dataclasses import replace

from arkloop.shared.catalog.model_settings import ordered_speed
from arkloop.shared.events.usage import Usage
from arkloop.worker.contract.attachments import Attachment
from arkloop.worker.contract.messages import (
    AssistantMessage,
    ModelRequest,
    ToolMessage,
    attachments_of,
    state_text,
)
from arkloop.worker.providers import output_modes

CHARACTERS_PER_TOKEN = 4  # only for estimates

# What vendors and chat templates add of their own. Anthropic's prompt for tools has 700 tokens.
_OF_A_CALL = 256
_OF_THE_TOOLS = 1024
_OF_A_MESSAGE = 32
_OF_A_TOOL = 128


def estimate(request: ModelRequest, output: str) -> Usage:
    """Estimate about four characters per token; never more than the worst case.

    What a vendor has counted has its count.
    """
    written = -(-len(output) // CHARACTERS_PER_TOKEN)
    if request.max_output_tokens is not None:
        written = min(written, request.max_output_tokens)
    added = _added(request) if request.counted_messages else request
    read = request.counted_tokens + sum(part.tokens for part in _attachments(added))
    read -= -sum(map(len, _texts(added))) // CHARACTERS_PER_TOKEN
    read = min(read, _most_input(request))
    return Usage(
        input_tokens=read,
        output_tokens=written,
        source="estimated",
        speed=ordered_speed(request.settings),
    )


def worst_case(request: ModelRequest, *, writes_cache: bool = True) -> Usage:
    """Bound the input, and count all the output that is allowed.

    Attachments have bounds of their own: an image has fewer tokens than bytes.

    `writes_cache`: the vendor may charge input tokens as written to its cache; for longer only if
    the request says so, for which `extra_body` is the one way.

    Raises:
        ValueError: the request has no `max_output_tokens`.
    """
    if request.max_output_tokens is None:
        raise ValueError("The worst-case cost of a call without `max_output_tokens` is unknown.")
    most, is_custom = _most_input(request), "extra_body" in request.settings
    return Usage(
        input_tokens=most,
        output_tokens=request.max_output_tokens,
        cache_write_tokens=most if writes_cache or is_custom else 0,
        cache_write_1h_tokens=most if is_custom else 0,
        speed=ordered_speed(request.settings),
    )


def most_tokens_of_frame(request: ModelRequest) -> int:
    """Count a token for each byte of everything but the messages."""
    return _most_tokens(replace(request, messages=()))


def _most_input(request: ModelRequest) -> int:
    """Count a token for each byte that is sent, except what a vendor has counted."""
    by_bytes = _most_tokens(request)
    if not request.counted_messages:
        return by_bytes
    return min(by_bytes, request.counted_tokens + _most_tokens(_added(request)))


def _added(request: ModelRequest) -> ModelRequest:
    """Return the part of the request that no vendor has counted."""
    added = request.messages[request.counted_messages :]
    return replace(request, system_prompt="", tools=(), settings={}, messages=added)


def _most_tokens(request: ModelRequest) -> int:
    marks = _OF_A_CALL + _OF_A_MESSAGE * len(request.messages) + _OF_A_TOOL * len(request.tools)
    for message in request.messages:
        if isinstance(message, AssistantMessage):
            marks += _OF_A_MESSAGE * len(message.tool_calls)
    if request.tools:
        marks += _OF_THE_TOOLS
    texts = sum(len(text.encode("utf-8", "surrogatepass")) for text in _texts(request))
    attached = sum(part.most_tokens(request.model) for part in _attachments(request))
    return marks + texts + attached


def _attachments(request: ModelRequest) -> Iterator[Attachment]:
    for message in request.messages:
        yield from attachments_of(message)


def _texts(request: ModelRequest) -> Iterator[str]:
    """Yield every text that is sent."""
    yield request.system_prompt
    for name in ("extra_body", output_modes.SETTING):
        if name in request.settings:
            yield json.dumps(request.settings[name])
    for message in request.messages:
        yield message.content
        match message:
            case AssistantMessage(tool_calls=calls, state=state):
                yield state_text(state)
                for call in calls:
                    yield call.id + call.name + json.dumps(call.arguments)
            case ToolMessage(tool_call_id=call_id):
                yield call_id
    for tool in request.tools:
        yield tool.text
