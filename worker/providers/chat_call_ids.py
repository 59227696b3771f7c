"""The ids of tool calls in chat completions, in the form that a model was trained on.

Kimi's chat template shows an id to the model as it is, and nothing else has the function's name:
after ids of another form the model breaks off, or writes its calls as text. Moonshot's own API
renames them, other servers do not (https://github.com/vllm-project/vllm/issues/50768,
https://github.com/getkimchi/kimchi/pull/1066). Mistral's API and chat templates refuse every id
that is not of nine letters and digits (https://github.com/anomalyco/opencode/issues/1680).
"""

import base64
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator

from arkloop.worker.contract.messages import Message, ToolCall
from arkloop.worker.providers.partial_calls import portable_id, portable_name, with_ids

_KIMI = re.compile("kimi", re.IGNORECASE)
_KIMIS = re.compile(r"functions\.[A-Za-z0-9_-]{1,64}:[0-9]{1,6}")
#: Mistral, Ministral, Magistral, Mixtral, Pixtral, Codestral, Devstral, …
_MISTRAL = re.compile("[sx]tral", re.IGNORECASE)
_MISTRALS = re.compile("[A-Za-z0-9]{9}")


def with_ids_for(model: str, messages: Iterable[Message]) -> Iterator[Message]:
    """Return the messages with ids of calls that the model accepts; a result has that of its call.

    They follow from the conversation alone, so that the beginning of each request is the same.
    """
    numbers = itertools.count()
    return with_ids(messages, lambda call: _id_for(model, call, next(numbers)))


def _id_for(model: str, call: ToolCall, number: int) -> str:
    if _KIMI.search(model):
        return f"functions.{portable_name(call.name)}:{number}"
    if _MISTRAL.search(model):
        return call.id if _MISTRALS.fullmatch(call.id) else _nine_characters(call.id)
    # A server may have another name for a model of Kimi's.
    return call.id if _KIMIS.fullmatch(call.id) else portable_id(call.id)


def _nine_characters(call_id: str) -> str:
    digest = hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).digest()
    return base64.b32encode(digest)[:9].decode()
