"""What fits into the model's context: the oldest messages are left out first.

It is cut where a turn begins, never between a tool call and its result. What a person has asked
last and the last turn of this run always stay.
"""

import json
from collections.abc import Sequence

from worker.messages import AssistantMessage, Message, ToolSpec, UserMessage, state_text

#: Cautious: English has about four characters a token, code and other languages fewer.
BYTES_PER_TOKEN = 3
#: Roles, separators, ids.
MESSAGE_TOKENS = 8


def tokens_of(message: Message) -> int:
    """About how many tokens the message takes; rather too many than too few."""
    size = len(message.content.encode())
    if isinstance(message, AssistantMessage):
        size += sum(len(call.name) + len(json.dumps(call.arguments)) for call in message.tool_calls)
        size += len(state_text(message.state).encode())
    return MESSAGE_TOKENS + -(-size // BYTES_PER_TOKEN)


def tokens_of_frame(system_prompt: str, tools: Sequence[ToolSpec]) -> int:
    """What stands before the messages: the prompt and the tools' descriptions."""
    size = len(system_prompt.encode())
    size += sum(
        len(tool.name) + len(tool.description.encode()) + len(json.dumps(dict(tool.parameters)))
        for tool in tools
    )
    return -(-size // BYTES_PER_TOKEN)


def fit(
    history: Sequence[Message], own: Sequence[Sequence[Message]], room_tokens: int
) -> tuple[list[Message], int]:
    """The messages that fit into `room_tokens`, and how many were left out.

    `history` is the thread up to this run, `own` are the run's turns. If even what must stay
    does not fit, it is given all the same: the provider says so.
    """
    groups = _groups(history)
    # Without a question the first turn of the run is no answer to anything: it may go like others.
    asked = groups[-1:] if groups and isinstance(groups[-1][0], UserMessage) else []
    earlier = groups[: len(groups) - len(asked)]
    turns = [list(turn) for turn in own if turn]
    room = room_tokens - sum(map(_size, asked)) - sum(map(_size, turns[-1:]))
    kept_turns = _newest(turns[:-1], room)
    room -= sum(map(_size, kept_turns))
    # A run's own turns are nearer to what it does now: where they do not fit, nothing earlier does.
    kept = _newest(earlier, room) if len(kept_turns) == len(turns[:-1]) else []
    chosen = [*kept, *asked, *kept_turns, *turns[-1:]]
    total = len(history) + sum(map(len, turns))
    messages = [message for group in chosen for message in group]
    return messages, total - len(messages)


def _groups(history: Sequence[Message]) -> list[list[Message]]:
    """A person's message and what was answered, each; what stands before the first one alone."""
    groups: list[list[Message]] = []
    for message in history:
        if isinstance(message, UserMessage) or not groups:
            groups.append([])
        groups[-1].append(message)
    return groups


def _newest(groups: Sequence[list[Message]], room: int) -> list[list[Message]]:
    kept: list[list[Message]] = []
    for group in reversed(groups):
        room -= _size(group)
        if room < 0:
            break
        kept.insert(0, group)
    return kept


def _size(group: Sequence[Message]) -> int:
    return sum(map(tokens_of, group))
