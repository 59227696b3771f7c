"""Answers that a person or a script types: what is sent for a line."""

import json
from typing import Any


def content_of(line: str, question: dict[str, Any]) -> str:
    """Convert the line to the content of an answer.

    Raises:
        ValueError, RecursionError: it begins like JSON and is none, so it is no reason either.
    """
    if question["kind"] == "form" and line.startswith("{"):
        document = json.loads(line)
        if "action" not in document:
            document = {"action": "accept", "content": document}
        return json.dumps(document, ensure_ascii=False)
    if question["kind"] != "tool_confirmation":
        return _chosen(line, question.get("options") or ())
    if not line.startswith("{"):
        return line
    document = json.loads(line)
    if "decision" not in document:
        document = {"decision": "edit", "arguments": document}
    return json.dumps(document, ensure_ascii=False)


def _chosen(line: str, options: Any) -> str:
    """Return the option that the line numbers, else the line, which may be an option's text."""
    if line not in options and line.isdecimal() and 1 <= int(line) <= len(options):
        return str(options[int(line) - 1])
    return line
