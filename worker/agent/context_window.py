"""The part of a conversation that a model gets: all that follows the thread's truncation point.

The point lies where an entry begins, never between a tool call and its result, and stays where it
is until the conversation has grown beyond the model's context: so each request begins with the
bytes of the one before it, and the vendor's prompt cache applies.
"""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace

from shared.events.types import ContextCompacted
from worker.agent.conversation import Entry
from worker.contract.messages import (
    AssistantMessage,
    Message,
    ToolMessage,
    ToolSpec,
    attachments_of,
    state_text,
)

#: Cautious: English has about four characters a token, code and other languages fewer.
BYTES_PER_TOKEN = 3
#: Tokenizers differ most in numbers: a token for each digit, or for up to three.
_DIGITS = b"0123456789"
#: Roles, separators, ids.
MESSAGE_TOKENS = 8
#: What is left of a result, however little room there is; and what the note in it takes.
LEAST_RESULT_TOKENS = 64
_NOTE_TOKENS = 56
#: The part of a cut result that is its beginning; the rest is its end.
_HEAD = 0.75


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


def in_force(contexts: Mapping[int, ContextCompacted], window_tokens: int) -> ContextCompacted:
    """Return the truncation point for models with this context; 0: its size is not known.

    Where a thread is used with several contexts, a point made for a larger one applies to a smaller
    one too, until that needs one of its own.
    """
    at_least = window_tokens or float("inf")
    found = [one for size, one in contexts.items() if (size or float("inf")) >= at_least]
    if not found:
        return ContextCompacted(window_tokens=window_tokens)
    newest = max(found, key=lambda one: (one.upto, one.window_tokens == window_tokens))
    if newest.window_tokens == window_tokens:
        return newest
    return replace(newest, window_tokens=window_tokens, result_tokens=None)


def start_of(entries: Sequence[Entry], context: ContextCompacted) -> int:
    """Return the index of the first entry after the truncation point."""
    return bisect_right(entries, context.upto, key=lambda entry: entry.place)


def entries_from(entries: Sequence[Entry], start: int) -> list[Entry]:
    """Return the entries from this index on, after the question that the first of them answers."""
    kept = list(entries[start:])
    if start and not (kept and kept[0].is_of_user):
        question = next((entry for entry in reversed(entries[:start]) if entry.is_of_user), None)
        return [question, *kept] if question else kept
    return kept


def cut_results(messages: Sequence[Message], each: float, together: float) -> list[Message]:
    """Cut the large results of a turn, so that each and all have at most these tokens.

    It depends on the turn alone, not on what else is sent: a result is cut once and for all.
    """
    sizes = [tokens_of(m) for m in messages if isinstance(m, ToolMessage)]
    most = min(each + MESSAGE_TOKENS, _share(sizes, together)) if sizes else each
    if all(size <= most for size in sizes):
        return list(messages)
    most = max(most, LEAST_RESULT_TOKENS + MESSAGE_TOKENS + _NOTE_TOKENS)
    return [_cut(message, most) for message in messages]


def _share(sizes: Sequence[int], room: float) -> float:
    """Compute the most that each may have so that all fit together; small ones stay whole."""
    left = len(sizes)
    for size in sorted(sizes):
        if size * left > room:
            return room / left
        room, left = room - size, left - 1
    return max(sizes)


def _cut(message: Message, most: float) -> Message:
    if not isinstance(message, ToolMessage) or (size := tokens_of(message)) <= most:
        return message
    text, most = message.content, most - MESSAGE_TOKENS - _NOTE_TOKENS
    kept = int(len(text) * most / size)
    head, tail = text[: int(kept * _HEAD)], text[len(text) - int(kept * (1 - _HEAD)) :]
    while tokens_of_text(head) + tokens_of_text(tail) > most:  # denser than the rest of it
        head, tail = head[: len(head) * 3 // 4], tail[-(len(tail) * 3 // 4) :] if tail else ""
    omitted = len(text) - len(head) - len(tail)
    note = f"\n[{omitted} of {len(text)} characters are omitted here: too long for the context]\n"
    return replace(message, content=head + note + tail)
