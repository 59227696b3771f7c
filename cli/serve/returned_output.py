"""The output that a served agent has returned, read as that of an agent in the service."""

from typing import Any

from arkloop.shared import json_text
from arkloop.shared.agents.transcript import output_json
from arkloop.shared.events.plain import clean
from arkloop.shared.json_text import InvalidJSON


class InvalidOutput(ValueError):
    """A returned value that is not the output which the run must have."""


def output_of(returned: Any, said: str) -> tuple[str, dict[str, Any]]:
    """Return the JSON text and the object that an agent has returned; `said` is its last text.

    Raises:
        InvalidOutput: it is no object, or a property is not JSON, such as NaN.
        ValueError: it is not JSON at all, as an object of Python.
    """
    text = clean(returned) if isinstance(returned, str) else output_json(returned, said)
    try:
        value = json_text.loads(text.encode(), max_values=None, takes_long_integers=True)
    except InvalidJSON as error:
        raise InvalidOutput(" ".join(_sentence(*one) for one in error.problems.items())) from None
    if not isinstance(value, dict):
        raise InvalidOutput("The output must be of type object.")
    return text, value


def _sentence(field: str, why: str) -> str:
    return f"The output {why}." if field == "body" else f"The property {field!r}: {why}."
