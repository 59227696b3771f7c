"""The ids of tool calls, for vendors that accept each only once in a conversation.

They are unique in a run, and a thread has many runs: some servers begin to count anew in each, as
our own ids for calls without one do. Anthropic refuses such a conversation (https://github.com/
BerriAI/litellm/issues/23510), and so does OpenAI's Responses API (https://github.com/NousResearch/
hermes-agent/issues/102629).
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from arkloop.worker.contract.messages import Message
from arkloop.worker.providers.partial_calls import portable_id, with_ids


def with_unique_ids(messages: Iterable[Message]) -> Iterator[Message]:
    """Return the messages with ids that every vendor accepts; a result has that of its call.

    They follow from what comes before alone, so that the beginning of each request is the same.
    """
    counts: Counter[str] = Counter()
    return with_ids(messages, lambda call: _id_for(call.id, counts))


def _id_for(call_id: str, counts: Counter[str]) -> str:
    """Return the call's own id, or one derived from it where that came before."""
    counts[call_id] += 1
    again = counts[call_id] - 1
    return portable_id(f"{call_id}\n{again}" if again else call_id)
