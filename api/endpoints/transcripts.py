"""A timeline as plain text, for people to read."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from arkloop.shared.threads.content import described

Shown = Mapping[str, Any]


def text_of(entries: Sequence[Shown]) -> str:
    """Return the transcript of entries of a timeline, without runs that have been replaced."""
    blocks = [block for entry in entries for block in _blocks(entry)]
    return "\n\n".join(blocks) + "\n" if blocks else ""


def _blocks(entry: Shown) -> Iterator[str]:
    if entry["type"] == "message":
        content = entry["content"]
        text = content if isinstance(content, str) else described(content)
        yield _said("User" if entry["role"] == "user" else "Assistant", text)
        return
    if entry["superseded_by"] is not None:
        return
    for turn in entry["turns"]:
        if turn["text"]:
            yield _said("Assistant", turn["text"])
        for call in turn["tool_calls"]:
            yield from _call(call)
        for question in turn["questions"]:
            if question["kind"] != "tool_results":
                yield from _question(question)
    if entry["status"] == "failed":
        yield f"[failed: {entry['error']['code']}: {entry['error']['message']}]"
    elif entry["status"] != "completed":
        yield f"[{entry['status'].replace('_', ' ')}]"


def _call(call: Shown) -> Iterator[str]:
    arguments = call["arguments_text"] if "arguments_text" in call else _json(call["arguments"])
    yield _said(f"Call of {call['name']}", arguments)
    if (result := call.get("result")) is not None:
        name = "Error" if result["is_error"] else "Result"
        yield _said(f"{name} of {call['name']}", result["output"])


def _question(question: Shown) -> Iterator[str]:
    options = question.get("options")
    yield _said("Question", question["prompt"] + (f" ({', '.join(options)})" if options else ""))
    if question["answer"] is not None:
        yield _said("Answer", question["answer"])


def _said(by: str, text: str) -> str:
    """Return what was said, indented: no text can pass for what somebody else has said."""
    return "\n".join([f"{by}:", *(f"    {line}" if line else "" for line in text.splitlines())])


def _json(arguments: Any) -> str:
    if isinstance(arguments, str):
        return arguments
    return json.dumps(arguments, ensure_ascii=False)
