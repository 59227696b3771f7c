"""The part of a conversation that fits into the model's context: the oldest messages are omitted
first.

It is cut where a turn begins, never between a tool call and its result. What a person has asked
last and the last turn of this run always stay; where they do not fit, the results of that turn's
calls are cut in what is sent.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from worker.contract.messages import (
    AssistantMessage,
    Message,
    ModelRequest,
    ToolMessage,
    ToolSpec,
    UserMessage,
    attachments_of,
    state_text,
)

#: Cautious: English has about four characters a token, code and other languages fewer.
BYTES_PER_TOKEN = 3
#: Tokenizers differ most in numbers: a token for each digit, or for up to three.
_DIGITS = b"0123456789"
#: Roles, separators, ids.
MESSAGE_TOKENS = 8
#: What is left of a result, however little room there is; and what the note at its end takes.
LEAST_RESULT_TOKENS = 64
_NOTE_TOKENS = 56


def tokens_of_text(text: str) -> int:
    """Estimate the tokens of a text, rather too many than too few."""
    data = text.encode("utf-8", "surrogatepass")
    digits = len(data) - len(data.translate(None, _DIGITS))
    return digits - (digits - len(data)) // BYTES_PER_TOKEN


def tokens_of(message: Message) -> int:
    """Estimate the tokens of a message, rather too many than too few."""
    tokens = MESSAGE_TOKENS + tokens_of_text(message.content)
    if isinstance(message, AssistantMessage):
        for call in message.tool_calls:
            tokens += tokens_of_text(call.name + json.dumps(call.arguments))
        tokens += tokens_of_text(state_text(message.state))
    return tokens + sum(part.tokens for part in attachments_of(message))


def tokens_of_frame(system_prompt: str, tools: Sequence[ToolSpec]) -> int:
    """Estimate the tokens before the messages: the prompt and the tools' descriptions."""
    texts = [tool.name + tool.description + json.dumps(dict(tool.parameters)) for tool in tools]
    return tokens_of_text(system_prompt) + sum(map(tokens_of_text, texts))


def tokens_of_request(request: ModelRequest) -> int:
    """Estimate the tokens of everything that is sent."""
    frame = tokens_of_frame(request.system_prompt, request.tools)
    return frame + sum(map(tokens_of, request.messages))


@dataclass(frozen=True, slots=True)
class Fitted:
    """The messages that are sent, how many were left out, and how many results were cut."""

    messages: list[Message]
    dropped: int = 0
    shortened: int = 0


def fit(history: Sequence[Message], own: Sequence[Sequence[Message]], room_tokens: float) -> Fitted:
    """Choose the messages that fit into `room_tokens`.

    `history` is the thread up to this run, `own` are the run's turns. If even the question and the
    last turn, with its results cut, do not fit, they are given all the same: the provider says so.
    """
    groups = _groups(history)
    # Without a question the first turn of the run is no answer to anything: it may go like others.
    has_question = bool(groups) and isinstance(groups[-1][0], UserMessage)
    asked = [groups[-1][:1]] if has_question else []
    # What was answered already, perhaps by a run that failed, may go like the run's own turns.
    answered = _turns(groups[-1][1:]) if has_question else []
    earlier = groups[:-1] if has_question else groups
    turns = [*answered, *(list(turn) for turn in own if turn)]
    stays = len(turns) - 1 if any(own) else len(turns)
    last, shortened = _shortened(turns[stays:], room_tokens - sum(map(_size, asked)))
    room = room_tokens - sum(map(_size, asked)) - sum(map(_size, last))
    kept_turns = _newest(turns[:stays], room)
    room -= sum(map(_size, kept_turns))
    # A run's own turns are nearer to what it does now: where they do not fit, nothing earlier does.
    kept = _newest(earlier, room) if len(kept_turns) == stays else []
    messages = [m for group in (*kept, *asked, *kept_turns, *last) for m in group]
    total = len(history) + sum(map(len, own))
    return Fitted(messages, total - len(messages), shortened)


def _turns(messages: Sequence[Message]) -> list[list[Message]]:
    """Group each turn of a model with the results of its calls."""
    turns: list[list[Message]] = []
    for message in messages:
        if not isinstance(message, ToolMessage) or not turns:
            turns.append([])
        turns[-1].append(message)
    return turns


def _shortened(turns: list[list[Message]], room: float) -> tuple[list[list[Message]], int]:
    """Shorten the results of the turn's calls, if there is a turn, to what fits into the room."""
    sizes = [tokens_of(m) for turn in turns for m in turn if isinstance(m, ToolMessage)]
    room -= sum(map(_size, turns)) - sum(sizes)
    if not sizes or sum(sizes) <= room:
        return turns, 0
    most = max(_share(sizes, room), LEAST_RESULT_TOKENS + MESSAGE_TOKENS + _NOTE_TOKENS)
    cut = [[_cut(message, most) for message in turn] for turn in turns]
    return cut, sum(size > most for size in sizes)


def _share(sizes: Sequence[int], room: float) -> float:
    """Compute the most that each may have so that all fit together; small ones stay whole."""
    left = len(sizes)
    for size in sorted(sizes):
        if size * left > room:
            return room / left
        room, left = room - size, left - 1
    return max(sizes)


def _cut(message: Message, most: float) -> Message:
    size = tokens_of(message)
    if not isinstance(message, ToolMessage) or size <= most:
        return message
    text, most = message.content, most - MESSAGE_TOKENS - _NOTE_TOKENS
    start = text[: int(len(text) * most / size)]
    while tokens_of_text(start) > most:  # its beginning has more tokens than the rest of it
        start = start[: len(start) // 2]
    note = (
        f"\n[truncated: first {len(start)} of {len(text)} characters; the rest does not"
        " fit in the context]"
    )
    return replace(message, content=start + note)


def _groups(history: Sequence[Message]) -> list[list[Message]]:
    """Group each message of a user with what follows it; messages before the first stay alone."""
    groups: list[list[Message]] = []
    for message in history:
        if isinstance(message, UserMessage) or not groups:
            groups.append([])
        groups[-1].append(message)
    return groups


def _newest(groups: Sequence[list[Message]], room: float) -> list[list[Message]]:
    kept: list[list[Message]] = []
    for group in reversed(groups):
        room -= _size(group)
        if room < 0:
            break
        kept.insert(0, group)
    return kept


def _size(group: Sequence[Message]) -> int:
    return sum(map(tokens_of, group))
