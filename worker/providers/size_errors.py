"""The messages by which vendors refuse a request as too large ever to be accepted.

There is no common code: the words are those of the vendors and servers, as users quote them in
public issues. A 429 that passes by itself has other words, and is none of these.
"""

import re
from collections.abc import Mapping
from typing import Any

from arkloop.worker.contract.outcomes import TooLarge

_N = r"\(?([\d,]*\d)"

#: Of the account, per minute: OpenAI's as a 429, Groq's as a 413.
_PER_MINUTE = re.compile(
    rf"request too large for .*?limit:? {_N}, requested:? {_N}", re.IGNORECASE | re.DOTALL
)
#: Of the model's context, in lower case.
_CONTEXT = re.compile(
    "|".join(
        [
            r"context_length_exceeded|context length exceeded|context_window_exceeded",
            r"exceed_context_size|exceeds the available context size",  # llama.cpp
            r"maximum context length",  # OpenAI, DeepSeek, vLLM, OpenRouter, Mistral
            r"exceeds? the (?:model's )?context window|context window exceeds limit",
            r"exceeded this model context window limit",  # Cloudflare
            r"too many tokens: (?:total number of tokens|size limit exceeded)",  # Cohere
            r"input tokens exceed the configured limit",  # OpenAI
            r"prompt is too long|exceed context limit",  # Anthropic
            r"maximum prompt length is \d",  # xAI
            r"exceeded model token limit",  # Kimi
            r"input token count.{0,40}exceeds the maximum",  # Gemini
            r"prompt token count.{0,20}exceeds the limit",  # GitHub
            r"reduce the length of the messages",  # Groq
            r"maximum model length|longer than the model's context length",  # vLLM, Together
            r"tokens \+ .max_new_tokens. must be <=|.inputs. must have less than \d",  # TGI
            r"context length of only \d|greater than the context length",  # LM Studio
            r"prompt too long; exceeded",  # Ollama
            r"input is too long for requested model",  # Bedrock
            r"range of input length should be|prompt exceeds max length",  # Qwen, GLM
            # LiteLLM, which also takes a field that is too long for the context.
            r"contextwindowexceedederror(?!(?s:.*)string too long)|context window exceeded for",
        ]
    )
)
#: Of the request, and maybe not of its tokens: a field, the list of tools, the bytes of the body.
_UNCLEAR = re.compile(
    r"string_above_max_length|array_above_max_length"  # OpenAI
    r"|(?:string|array) too long\. expected an? (?:string|array) with maximum length"  # its words
    r"|request_too_large|request exceeds the maximum size"  # Anthropic
)
#: The tokens that were sent, without those of the answer; the first that fits.
_SENT = (
    rf"prompt is too long: {_N} ?(?:tokens|, model maximum)",
    rf"exceed context limit: {_N} \+",
    rf"{_N} (?:in the messages|in your prompt|in the prompt|of text input|`inputs` tokens)",
    rf"(?:resulted in|request contains|prompt contains|request has|contains at least) {_N} ",
    rf"requested: {_N}",
    rf"{_N} tokens from the input messages",
    rf"cannot exceed \d+ - received {_N}",
    rf"less than \d+ tokens\. given: {_N}",
    rf"(?:request|input) {_N} tokens",
    rf"(?:token count|token count of) {_N}\)? exceeds",
    rf"prompt \(length {_N}\)",
    rf", got={_N}",
)
#: What the model takes, input and output together; the first that fits.
_LIMIT = (
    rf"> {_N}",
    rf"maximum (?:context length|prompt length|model length)(?: is| of|:) {_N}",
    rf"model token limit: {_N}",
    rf"model with {_N} maximum context length",
    rf"(?:available context size|context length|tokens allowed|configured limit of) {_N}",
    rf"(?:exceeds the limit of|must be <=|context length of only) {_N}",
    rf"range of input length should be \[\d+, {_N}",
    rf"(?:context window limit|in the prompt cannot exceed|must have less than) {_N}",
    rf"max input tokens={_N}",
)
#: Both as fields of the error, by llama.cpp.
_SENT_FIELD, _LIMIT_FIELD = "n_prompt_tokens", "n_ctx"


def read(message: str, body: Any, status: int | None = None) -> TooLarge | None:
    """Read what the error says about the request's size; None if it is about something else.

    `body` is the error's object, or whatever there is without one.
    """
    if found := _PER_MINUTE.search(message):
        limit, sent = map(_int, found.groups())
        return TooLarge(limit_tokens=limit, sent_tokens=sent, is_per_minute=True)
    fields = body if isinstance(body, Mapping) else {}
    text = " ".join([message, *(str(fields.get(name)) for name in ("code", "type"))]).lower()
    is_of_context = _CONTEXT.search(text) is not None
    if status == 429 or not (is_of_context or status == 413 or _UNCLEAR.search(text)):
        return None
    return TooLarge(
        limit_tokens=_field(fields, _LIMIT_FIELD) or _first(_LIMIT, text),
        sent_tokens=_field(fields, _SENT_FIELD) or _first(_SENT, text),
        is_unclear=not is_of_context,
    )


def _field(fields: Mapping[str, Any], name: str) -> int | None:
    value = fields.get(name)
    return value if type(value) is int and value > 0 else None


def _first(patterns: tuple[str, ...], text: str) -> int | None:
    found = (re.search(pattern, text) for pattern in patterns)
    numbers = (_int(match[1]) for match in found if match)
    return next((number for number in numbers if number > 0), None)


def _int(digits: str) -> int:
    return int(digits.replace(",", "")[:12])
