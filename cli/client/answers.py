"""Answers that a person or a script types as a line, as they are sent."""

import json
from typing import Any


def content_of(line: str, question: dict[str, Any], arguments: Any) -> str:
    """Convert the line to the content of an answer.

    An object may be a whole reply of the API. If the call's `arguments`, or the form, have a field
    with the name of a reply's, it is what was asked for: new arguments, or the form's fields.

    Raises:
        ValueError, RecursionError: it begins like JSON and is none, so it is no reason either.
    """
    if question["kind"] == "form" and line.startswith("{"):
        document = json.loads(line)
        schema = question.get("schema") or {}
        if "action" not in document or "action" in schema.get("properties", {}):
            document = {"action": "accept", "content": document}
        return json.dumps(document, ensure_ascii=False)
    if question["kind"] != "tool_confirmation":
        return _chosen(line, question.get("options") or ())
    if not line.startswith("{"):
        return line
    document = json.loads(line)
    is_argument = isinstance(arguments, dict) and "decision" in arguments
    if "decision" not in document or is_argument:
        document = {"decision": "edit", "arguments": document}
    return json.dumps(document, ensure_ascii=False)


def _chosen(line: str, options: Any) -> str:
    """Return the option that the line numbers, else the line, which may be an option's text."""
    if line not in options and line.isdecimal() and 1 <= int(line) <= len(options):
        return str(options[int(line) - 1])
    return line
