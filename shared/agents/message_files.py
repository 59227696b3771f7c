"""The images and files that the messages of a custom agent's run name."""

from collections.abc import Mapping
from typing import Any, cast

from arkloop.shared.agents.agent_run import Message

FIELDS = ("kind", "file_id", "url", "name", "media_type", "size")


def shown(message: Mapping[str, Any]) -> Message:
    """Return a message whose files, sent as the thread has them, are as an agent sees them."""
    one = cast("Message", dict(message))
    if "files" in one:
        one["files"] = [_flat(file) for file in one["files"]]
    return one


def _flat(part: Mapping[str, Any]) -> dict[str, Any]:
    known = {"kind": part.get("type"), **part, **part.get("file", {})}
    return {name: value for name in FIELDS if (value := known.get(name))}
