"""The descriptions of tools by their servers, and the hash that an approval is bound to."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arkloop.shared import json_text
from arkloop.shared.events.plain import clean

MAX_TOOLS = 256
MAX_DESCRIPTION_BYTES = 16 * 1024
MAX_PARAMETERS_BYTES = 16 * 1024
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: Of a name or description that is refused for its length, so much is kept to be looked at.
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Description:
    """A tool as its server describes it.

    `problem` says why it can never be offered; what is too large is cut then.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]  # a JSON schema
    hash: str  # SHA-256 of name, description and parameters, before anything was cut
    problem: str | None = None


def describe(name: str, description: str, parameters: Mapping[str, Any]) -> Description:
    """Judge a tool by its name and size; its schema is for the worker to compile."""
    text = _canonical([name, description, parameters])
    digest = hashlib.sha256(text.encode()).hexdigest()
    if not _NAME.fullmatch(name):
        problem = "The name must be 1 to 64 letters, digits, underscores and dashes."
        return Description(_beginning(name), _beginning(description), {}, digest, problem)
    if len(description.encode()) > MAX_DESCRIPTION_BYTES:
        problem = f"The description is larger than {MAX_DESCRIPTION_BYTES // 1024} KiB."
        return Description(name, _beginning(description), {}, digest, problem)
    schema = _canonical(parameters)
    if len(schema.encode()) > MAX_PARAMETERS_BYTES:
        problem = f"The parameters are larger than {MAX_PARAMETERS_BYTES // 1024} KiB."
        return Description(name, clean(description), {}, digest, problem)
    if unstorable := _unstorable(schema):
        return Description(name, clean(description), {}, digest, unstorable)
    return Description(name, clean(description), parameters, digest)


def _unstorable(schema: str) -> str | None:
    """Return why Python's JSON cannot be JSON in Postgres, None if it can."""
    try:
        json_text.loads(schema.encode(), takes_long_integers=True)
    except json_text.InvalidJSON as error:
        name, why = next(iter(error.problems.items()))
        return f"The schema of the parameters cannot be stored: {name!r} {why}."
    return None


def _canonical(value: Any) -> str:
    # ASCII: any Unicode is hashed alike, lone surrogates included.
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _beginning(text: str) -> str:
    return clean(text[:_SHOWN_CHARACTERS])
