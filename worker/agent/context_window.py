"""The part of a conversation that a model gets: all that follows the thread's truncation point.

The point lies where an entry begins, never between a tool call and its result, and stays where it
is until the conversation has grown beyond the model's context: so each request begins with the
bytes of the one before it, and the vendor's prompt cache applies.
"""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace

from arkloop.shared.events.types import ContextCompacted
from arkloop.worker.agent.conversation import Entry
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Message,
    ToolMessage,
    ToolSpec,
    attachments_of,
    state_text,
)
from arkloop.worker.contract.token_estimates import beginning, tokens_of_text

#: What a truncation keeps of the input: half, or a third of a large one, where half is more than
#: this number of tokens. Each request pays for all that is kept, and the first one the full price.
KEPT_PART, KEPT_OF_MANY, FEW_TOKENS = 1 / 2, 1 / 3, 32_000
#: The part of a context that the results of one turn may have together: half of the input where an
#: answer is as long as it may be. A part of the actual input would differ with the answer's limit:
#: old results would grow, and neither the vendor's cache nor its last count would apply.
RESULTS_PART = 1 / 4
#: Roles, separators, ids.
MESSAGE_TOKENS = 8
#: What is left of a result, however little room there is; and what the note in it takes.
LEAST_RESULT_TOKENS = 64
_NOTE_TOKENS = 72
#: The tool that reads what is omitted.
READ_RESULT = "read_result"
#: The part of a cut result that is its beginning; the rest is its end.
_HEAD = 0.75


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
    return tokens_of_text(system_prompt) + sum(tokens_of_text(tool.text) for tool in tools)


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


def kept_of(tokens: float) -> float:
    """Return the tokens that a truncation leaves of these."""
    return max(min(tokens * KEPT_PART, FEW_TOKENS), tokens * KEPT_OF_MANY)


def results_of(window_tokens: int | None) -> float:
    """Return the tokens that the results of one turn may have together in this context."""
    return float("inf") if window_tokens is None else window_tokens * RESULTS_PART


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


def cut_results(entry: Entry, each: float, together: float) -> list[Message]:
    """Cut the large results of a turn, so that each and all have at most these tokens.

    It depends on the turn alone, not on what else is sent: a result is cut once and for all.
    """
    sizes = [_text_size(m) for m in entry.messages if isinstance(m, ToolMessage)]
    most = min(each + MESSAGE_TOKENS, _share(sizes, together)) if sizes else each
    most = max(most, LEAST_RESULT_TOKENS + MESSAGE_TOKENS + _NOTE_TOKENS)
    return [_cut(message, most, entry.position) for message in entry.messages]


def _share(sizes: Sequence[int], available: float) -> float:
    """Compute the most that each may have so that all fit together; small ones stay whole."""
    left = len(sizes)
    for size in sorted(sizes):
        if size * left > available:
            return available / left
        available, left = available - size, left - 1
    return max(sizes)


def _text_size(result: ToolMessage) -> int:
    return MESSAGE_TOKENS + tokens_of_text(result.content)


def _cut(message: Message, most: float, position: int) -> Message:
    if not isinstance(message, ToolMessage):
        return message
    size = _text_size(message)
    if size <= most and message.characters is None:
        return message
    text, total = message.content, message.characters or len(message.content)
    most = min(most, size) - MESSAGE_TOKENS - _NOTE_TOKENS
    head = beginning(text[: int(len(text) * most / size)], most * _HEAD)
    tail = beginning(text[: len(head) : -1][: int(len(text) * most / size)], most * (1 - _HEAD))
    omitted = total - len(head) - len(tail)
    note = f"{omitted} of {total} characters are omitted here"
    if message.seq:
        note += f'; {READ_RESULT} with the id "{position}.{message.seq}" returns them'
    return replace(message, content=f"{head}\n[{note}]\n{tail[::-1]}")
