"""A question that a custom agent asks a person, the same wherever the agent runs."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from arkloop.shared.events.plain import clean

MAX_QUESTION_CHARACTERS = 8192
MAX_OPTIONS = 20
MAX_OPTION_CHARACTERS = 500
MAX_KEY_CHARACTERS = 128


class Question(NamedTuple):
    """The text of a question as it is stored, the options, and the key, if it has one."""

    prompt: str
    options: list[str]
    key: str | None = None


def answer_to(
    text: str, key: str | None, answers: Mapping[tuple[str | None, str], str]
) -> str | None:
    """Return a person's answer to a question, by its key or else its text; None without one.

    The question may have been asked by a release with other limits, so it is not checked.
    """
    asked = clean(text) if isinstance(text, str) else None
    key = clean(key) if isinstance(key, str) else key
    for (asked_by, prompt), answer in answers.items():
        if (asked_by == key) if key is not None else (asked_by is None and prompt == asked):
            return answer
    return None


def question_of(text: str, options: Sequence[str], key: str | None = None) -> Question:
    """Check a question, its options and its key, with U+FFFD for what cannot be stored.

    Raises:
        ValueError
    """
    if not isinstance(text, str) or not 1 <= len(text) <= MAX_QUESTION_CHARACTERS:
        raise ValueError(f"A question is a string of 1 to {MAX_QUESTION_CHARACTERS:,} characters.")
    if len(options) > MAX_OPTIONS or not all(
        isinstance(option, str) and 1 <= len(option) <= MAX_OPTION_CHARACTERS for option in options
    ):
        raise ValueError(
            f"A question has at most {MAX_OPTIONS} options, each a string of 1 to"
            f" {MAX_OPTION_CHARACTERS} characters."
        )
    if key is not None and not (isinstance(key, str) and 1 <= len(key) <= MAX_KEY_CHARACTERS):
        raise ValueError(f"A key is a string of 1 to {MAX_KEY_CHARACTERS} characters.")
    stored_key = None if key is None else clean(key)
    return Question(clean(text), [clean(option) for option in options], stored_key)
