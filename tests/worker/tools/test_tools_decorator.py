"""The decorator `@tool` without what it has to be given."""

from typing import Any

import pytest

from arkloop.worker.contract.context import ToolContext
from arkloop.worker.tools import tool


def greet(context: ToolContext) -> str:
    """Return a greeting."""
    return "hello"


def test_a_tool_says_whether_it_is_idempotent() -> None:
    """The error says what to write, and what decides."""
    untyped: Any = tool  # type checkers refuse both
    message = r"^Write `@tool\(idempotent=True\)` if .* called again after a crash"
    with pytest.raises(TypeError, match=message):
        untyped(greet)
    with pytest.raises(TypeError, match=message):
        untyped()
