"""Reading what is omitted of a long tool result."""

import re
import time
from typing import Any

import pytest

from arkloop.shared.events import types
from arkloop.worker import tools
from arkloop.worker.contract.token_estimates import tokens_of_text
from arkloop.worker.tools import CallInfo, ToolFailed
from tests.worker.recorded_run import RUN, RecordedRun

TEXT = "".join(f"line {i}: {'é' * (i % 5)}\n" for i in range(20_000))
INFO = CallInfo.of(RUN, "call", result_tokens=2_000)


@pytest.fixture(name="read")
def _read() -> Any:
    """Call the tool on a stored result whose event has a part of it."""
    context = RecordedRun()
    event = types.ToolResult("c1", "t", TEXT[:100], False, 1, characters=len(TEXT))
    context.emit(types.MessageDelta("x"), event)
    context.whole_outputs["c1"] = TEXT
    tool = tools.load(["read_result"])["read_result"]

    def read(**arguments: Any) -> str:
        given = {"id": "7.2", **arguments}
        tool.check(given)
        return tool(context, INFO, given)

    return read


def test_every_character_can_be_read(read: Any) -> None:
    """A call continues where the last one ended, within what the model sees of a result."""
    offset, found = 0, ""
    while offset < len(TEXT):
        head, _, part = read(offset=offset, limit=50_000).partition("]\n")
        assert tokens_of_text(part) <= INFO.result_tokens
        found, offset = found + part, offset + len(part)
        assert (f"continue with offset {offset}" in head) == (offset < len(TEXT))
    assert TEXT == found


def test_a_pattern_finds_places(read: Any) -> None:
    """Each with its offset and the text around it; there is more from the offset of the next."""
    found = read(pattern=r"line 1999\d:")
    first, *others = found.splitlines()[0], *[x for x in found.splitlines() if "[offset" in x]

    assert "[10 matches]" == first
    assert 10 == len(others)
    assert f"[offset {TEXT.index('line 19990:')}]" in others[0]
    many = read(pattern="line", offset=100)
    starts = [match.start() for match in re.finditer("line", TEXT) if match.start() >= 100]
    assert f"the next one is at offset {starts[20]}]" in many.splitlines()[0]
    assert "[0 matches]" == read(pattern="nothing of this")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"pattern": "("}, "not valid RE2: missing"),
        ({"pattern": "(?=a)"}, "not valid RE2: invalid perl operator"),
        ({"pattern": "a" * 501}, "pattern"),
        ({"offset": -1}, "offset"),
        ({"limit": 0}, "limit"),
        ({"id": "7.1"}, "There is no stored result with the id '7.1'"),
    ],
)
def test_a_wrong_call_is_explained(read: Any, arguments: dict[str, Any], why: str) -> None:
    """The model reads what is wrong with its call."""
    with pytest.raises(ToolFailed, match=why):
        read(**arguments)


def test_no_pattern_takes_long(read: Any) -> None:
    """Patterns that make a backtracking matcher hang are matched in linear time."""
    began = time.thread_time()

    for pattern in (r"(\w+\s*)+$", r"((l|li|lin)*)*z", "(.*)*.*q{500}", "x*"):
        read(pattern=pattern)

    assert time.thread_time() - began < 5
