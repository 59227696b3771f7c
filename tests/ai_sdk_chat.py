"""A chat of the AI SDK in Node.js, driven line by line: see tests/front_ends/chat.mjs."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.ai_sdk_pages import MODULES, NODE, PROGRAMS
from tests.caller import Caller

#: For modules of tests that need the packages of tests/front_ends/package.json.
needs_front_ends = [
    pytest.mark.front_ends,
    pytest.mark.skipif(
        not NODE.exists() and os.environ.get("NEED_FRONT_ENDS") != "1",
        reason="scripts/install-front-ends has not run",
    ),
]


class Chat:
    """A page: what `useChat` shows is in `messages`, `status` and `error` after each command."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.said: dict[str, Any] = {}

    def do(self, command: str, **how: Any) -> "Chat":
        """Execute a command; returns when it has settled."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": command, **how}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the chat has ended"
        self.said = json.loads(line)
        return self

    @property
    def messages(self) -> list[dict[str, Any]]:
        return list(self.said["messages"])

    @property
    def answer(self) -> dict[str, Any]:
        """The last message, which is the assistant's."""
        assert "assistant" == self.messages[-1]["role"]
        return self.messages[-1]

    @property
    def text(self) -> str:
        return "".join(p["text"] for p in self.answer["parts"] if p["type"] == "text")

    @property
    def status(self) -> tuple[str, str | None]:
        return self.said["status"], self.said.get("error")

    def call(self, name: str) -> dict[str, Any]:
        """Return the part of the one call of a tool."""
        [part] = [p for p in self.answer["parts"] if p["type"] == f"tool-{name}"]
        return dict(part)


@contextmanager
def open_chat(user: Caller, chat_id: str, ai: str = "ai7", **setup: Any) -> Iterator[Chat]:
    """Open a page with the chat, and close it after the block; an `automatic` one sends answers."""
    given = {"ai": ai, "url": user.url, "token": user.token, "chat": chat_id, **setup}
    process = subprocess.Popen(
        [str(NODE), str(PROGRAMS / "chat.mjs"), str(MODULES), json.dumps(given)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Chat(process)
    finally:
        process.kill()
        process.communicate()
