"""How vendors say that a request is too large ever to be accepted.

There is no common code: the words below are those of the vendors and servers, as users quote them
in public issues. A vendor's temporary limits (429) have words of their own and are not among them.
"""

import re
from typing import Any

from worker.outcomes import TooLarge

_NUMBER = r"([\d,]*\d)"

#: Of the account, per minute: OpenAI's as a 429, Groq's as a 413.
_PER_MINUTE = re.compile(
    rf"request too large for .*?limit:? {_NUMBER}, requested:? {_NUMBER}", re.IGNORECASE | re.DOTALL
)


def read(message: str, body: Any) -> TooLarge | None:
    """What the error says of the request's size; None if it is about something else."""
    if found := _PER_MINUTE.search(message):
        limit, sent = map(_int, found.groups())
        return TooLarge(limit_tokens=limit, sent_tokens=sent, is_per_minute=True)
    return None


def _int(digits: str) -> int:
    return int(digits.replace(",", ""))
