"""A check of the mark `processes`: without it, a test of `make test` starts no process of its own.

`make test` is what a developer waits for after each change, in five minutes; tests that start, kill
and freeze servers, workers and commands take longer, and belong to `make test-rest`.
"""

import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MARK = "processes"
#: The mark of tests in these folders, whose subjects are no part of the product.
MARK_OF_TOOLS = "tools"
TOOLS = (Path(__file__).parent / "bench", Path(__file__).parent / "chaos")
#: What Python reports of a process that it starts, and `tests/forked.py` of one that is forked.
EVENTS = frozenset({"subprocess.Popen", "arkloop.tests.fork"})


def is_left_out(file: Path, expression: str) -> bool:
    """Return whether a run with this expression of marks has no test of the file.

    True only where the Makefile's expression and the file's text say so: that spares its import.
    """
    if not file.name.startswith("test_"):
        return False
    text = file.read_text(encoding="utf-8")
    if expression.startswith("not (") and f" {MARK} or {MARK_OF_TOOLS} " in expression:
        return is_of_tools(file) or f"\npytestmark = pytest.mark.{MARK}\n" in text
    if expression.startswith(f"({MARK} or {MARK_OF_TOOLS}) and "):
        return not is_of_tools(file) and f"pytest.mark.{MARK}" not in text
    return False


def is_of_tools(file: Path) -> bool:
    """Return whether the tests of the file have the mark of tools."""
    return any(folder in file.parents for folder in TOOLS)


class OwnProcesses:
    """A plugin that fails a test which starts a process, unless it has one of the marks.

    Processes that fixtures of the session start are shared by all tests.
    """

    def __init__(self) -> None:
        self._started: list[str] = []
        self._shared = 0  # fixtures of the session that are being set up
        # It starts `uname` the first time: in whichever test comes first to a vendor's SDK.
        platform.processor()
        sys.addaudithook(self._note)

    def _note(self, event: str, args: tuple[Any, ...]) -> None:
        if event in EVENTS and not self._shared:
            self._started.append(str(args[1] if event == "subprocess.Popen" else args[0]))

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
        is_shared = fixturedef.scope == "session"
        self._shared += is_shared
        try:
            return (yield)
        finally:
            self._shared -= is_shared

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        self._started.clear()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        result = yield
        is_apart = any(map(item.get_closest_marker, (MARK, MARK_OF_TOOLS)))
        if self._started and not is_apart:
            pytest.fail(
                f"{item.path.name} starts a process ({self._started[0][:200]}): it needs"
                f" `pytestmark = pytest.mark.{MARK}`, so that `make test-rest` runs it"
            )
        return result
