"""The messages by which vendors refuse an output limit above what a model can write.

The words are those of the vendors, as users quote them in public issues.
"""

import re
from typing import Any

from arkloop.worker.providers import refused_settings

_N = r"`?\(?(\d[\d,]{0,11})"
_FIELD = r"(?:max[_ ](?:completion[_ ]|output[_ ])?tokens|max(?:output)?tokens)"
_NAME = rf"(?<![\w.]){_FIELD}"
_SAME_CLAUSE = r"(?:[^;,.]|\.(?=\w)){0,60}"  # the names of models have points

#: What names the greatest limit that the model takes, in lower case.
_MOST = re.compile(
    "|".join(
        [
            rf"{_NAME}: \d+ > {_N}, which is the maximum",  # Anthropic
            rf"supports at most {_N} (?:completion|output) tokens",  # OpenAI
            # OpenAI's Responses API, Doubao
            rf"{_NAME}{_SAME_CLAUSE}above maximum value[.,] expected a value <= {_N}",
            rf"maximum tokens you requested exceeds? the model limit of {_N}",  # Bedrock
            # Groq, and servers that check by Pydantic
            rf"{_NAME}{_SAME_CLAUSE} (?:must|should) be (?:less than or equal to|at most) {_N}",
            rf"range of {_NAME} (?:is|should be) \[\d+, {_N}\]",  # DeepSeek, Qwen
            rf"{_NAME}{_SAME_CLAUSE} exceeds model's maximum output tokens {_N}",  # Ollama
        ]
    )
)
#: Gemini names the first limit that is too high.
_TOO_HIGH = re.compile(
    rf"{_NAME} value of \d+ but the supported range is from \d+ \(inclusive\) to {_N} \(exclusive\)"
)
#: The fields that have the limit, as `param` names them; LiteLLM writes "None" where there is none.
_PARAM = re.compile(rf"(?:generation_?config\.)?{_FIELD}|none|")


def read(message: str, param: Any = None) -> int | None:
    """Return the most output tokens that the model allows; None if it is about something else."""
    text = message.lower()
    is_of_other = isinstance(param, str) and not _PARAM.fullmatch(param.lower())
    if is_of_other or refused_settings.is_of_content(text):
        return None
    if found := _MOST.search(text):
        most = next(_int(number) for number in found.groups() if number)
    elif found := _TOO_HIGH.search(text):
        most = _int(found[1]) - 1
    else:
        return None
    return most if most > 0 else None


def _int(digits: str) -> int:
    return int(digits.replace(",", ""))
