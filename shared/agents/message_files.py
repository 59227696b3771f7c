"""The images and files that the messages of a custom agent's run name."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

from arkloop.shared.agents.agent_run import Message

FIELDS = ("kind", "file_id", "url", "name", "media_type", "size")


def shown(message: Mapping[str, Any]) -> Message:
    """Return a message whose files, sent as the thread has them, are as an agent sees them."""
    one = cast("Message", dict(message))
    if "files" in one:
        one["files"] = [_flat(file) for file in one["files"]]
    return one


def find(messages: Iterable[Message], file_id: str) -> dict[str, Any]:
    """Return what is known about a stored file that one of the messages names.

    Raises:
        LookupError: none does.
    """
    for message in messages:
        for file in message.get("files", ()):
            if file.get("file_id") == file_id:
                return file
    raise LookupError(f"The messages of the run name no file {file_id!r}.")


def deleted(file_id: str) -> LookupError:
    """Return the error for a file that a message names, and that is gone."""
    return LookupError(f"The file {file_id} was deleted.")


def _flat(part: Mapping[str, Any]) -> dict[str, Any]:
    known = {"kind": part.get("type"), **part, **part.get("file", {})}
    return {name: value for name in FIELDS if (value := known.get(name))}
