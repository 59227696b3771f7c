"""The number of tokens of a call, without its tokenizer: an estimate, and an upper bound.

A tokenizer of today works on bytes: no token is shorter than one byte of UTF-8,
but for the few that mark where a message, a tool or the prompt begins and ends.
"""

import json
from collections.abc import Iterator

from shared.events.types import Usage
from worker.contract.attachments import Attachment
from worker.contract.messages import (
    AssistantMessage,
    ModelRequest,
    ToolMessage,
    attachments_of,
    state_text,
)
from worker.providers import output_modes

CHARACTERS_PER_TOKEN = 4  # only for estimates

# What vendors and chat templates add of their own. Anthropic's prompt for tools has 700 tokens.
_OF_A_CALL = 256
_OF_THE_TOOLS = 1024
_OF_A_MESSAGE = 32
_OF_A_TOOL = 128


def estimate(request: ModelRequest, output: str) -> Usage:
    """Estimate about four characters per token; never more than the worst case."""
    written = -(-len(output) // CHARACTERS_PER_TOKEN)
    if request.max_output_tokens is not None:
        written = min(written, request.max_output_tokens)
    attached = sum(part.tokens for part in _attachments(request))
    return Usage(
        input_tokens=attached - (-sum(map(len, _texts(request))) // CHARACTERS_PER_TOKEN),
        output_tokens=written,
        source="estimated",
    )


def worst_case(request: ModelRequest) -> Usage:
    """Count a token for each byte of text that is sent, and all the output that is allowed.

    Attachments have bounds of their own: an image has fewer tokens than bytes.

    Raises:
        ValueError: the request has no `max_output_tokens`.
    """
    if request.max_output_tokens is None:
        raise ValueError("The worst-case cost of a call without `max_output_tokens` is unknown.")
    marks = _OF_A_CALL + _OF_A_MESSAGE * len(request.messages) + _OF_A_TOOL * len(request.tools)
    for message in request.messages:
        if isinstance(message, AssistantMessage):
            marks += _OF_A_MESSAGE * len(message.tool_calls)
    if request.tools:
        marks += _OF_THE_TOOLS
    texts = sum(len(text.encode("utf-8", "surrogatepass")) for text in _texts(request))
    attached = sum(part.most_tokens(request.model) for part in _attachments(request))
    return Usage(input_tokens=marks + texts + attached, output_tokens=request.max_output_tokens)


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
        yield tool.name + tool.description + json.dumps(dict(tool.parameters))
