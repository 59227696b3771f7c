"""The setting that a vendor's refusal is about, so that the call can be made without it.

OpenAI names the parameter in `param`: "Unsupported parameter: 'temperature' is not supported with
this model." (https://github.com/OpenHands/software-agent-sdk/issues/1837), "Unsupported value:
'temperature' does not support 0.5 with this model." (issue 445 of diffbot/code-gpt-docs). Anthropic
has only words: "`temperature` is deprecated for this model."
(issue 11 of Mixpeal/anthropic-sdk), "thinking.type.enabled is not supported for this model". vLLM
has those of Pydantic: "[{'type': 'extra_forbidden', 'loc': ('body', 'verbosity'), …". xAI names
some fields as they are in its own code: "Model grok-build-0.1 does not support parameter
reasoningEffort."
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from arkloop.worker.providers import output_modes

#: The names that vendors give to settings, besides our own.
_ALIASES = {
    output_modes.SETTING: (
        *("response_format", "text.format", "output_config.format", "output_format", "grammar"),
        *("json_schema", "json schema", "structured output", "structured outputs"),
        # Vertex AI, where an organization's policy forbids them; Anthropic, of a schema beyond its
        # limits; and a server that does not know the field at all.
        *("structured_outputs", "union types", "schema is too complex"),
        "output_config: extra inputs are not permitted",
        # Gemini's, by the names of its own API.
        *("generation_config.response_schema", "generation_config.response_json_schema"),
        "GenerateContentRequest.generation_config.response_schema",
    ),
    "stop": ("stop_sequences",),
    "parallel_tool_calls": ("disable_parallel_tool_use",),
    "verbosity": ("text.verbosity",),
    "reasoning_effort": (
        *("reasoning.effort", "reasoning", "thinking", "output_config", "effort"),
        "budget_tokens",
    ),
}
#: DeepSeek: "Thinking mode does not support this tool_choice", which is no matter of the thinking.
_NAMED_LAST = re.compile(r"does not support this (?=\w)")
#: Anthropic, of a place in the conversation; others in front of it put their own words before.
_OF_MESSAGES = re.compile(r"(?:.{0,80}: )?messages\.")
#: Of a tool, whose schema may be no JSON Schema and whose arguments may be named like settings:
#: Anthropic, Gemini, and OpenAI where others pass on its words without `param`.
_OF_TOOLS = re.compile(r"(?<!\w)tools[.\[]\d|invalid schema for function")
#: Anthropic, where earlier turns lack the thinking that the request enables.
_THINKING_IS_ON = "`thinking` is enabled"


def find(status: int, param: Any, message: str, settings: Mapping[str, Any]) -> str | None:
    """Return the name of the refused setting, `extra_body.<field>` for one of its fields.

    None if the refusal is about something else.
    """
    if status not in (400, 422) or not settings:
        return None
    if isinstance(param, str) and param:
        found = [(len(word), name) for word, name in _words(settings) if _is_of(param, word)]
        return max(found, key=lambda one: one[0])[1] if found else None
    text = message.lower()
    if _OF_MESSAGES.match(text) and _THINKING_IS_ON not in text:
        return None
    text = _NAMED_LAST.split(text)[-1]
    of_tools = _OF_TOOLS.search(text)
    places = [
        (match.start(), -len(word), name)
        for word, name in _words(settings)
        if (match := re.search(rf"(?<![\w.]){re.escape(word.lower())}(?!\w)", text))
    ]
    if not places or (of_tools and of_tools.start() < min(places)[0]):
        return None
    return min(places)[2]


def is_of_content(text: str) -> bool:
    """Return whether a refusal, in lower case, is about a place in a message or a tool."""
    return bool(_OF_TOOLS.search(text) or re.search(r"(?<!\w)messages[.\[]\d", text))


def _words(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a refusal may call each of the settings, with its name here."""
    for name in settings:
        if name == "extra_body":
            for field, value in settings[name].items():
                members = value if isinstance(value, Mapping) else ()
                # The longest word counts: a summary of the reasoning is not its effort.
                for word in (field, *(f"{field}.{member}" for member in members)):
                    yield word, f"extra_body.{field}"
        else:
            words = (name, *_ALIASES.get(name, ()))
            yield from ((word, name) for word in words)
            yield from ((_in_camel_case(word), name) for word in words if "_" in word)


def _in_camel_case(word: str) -> str:
    first, *others = word.split("_")
    return first + "".join(map(str.capitalize, others))


def _is_of(param: str, word: str) -> bool:
    return param == word or param.startswith((f"{word}.", f"{word}["))
