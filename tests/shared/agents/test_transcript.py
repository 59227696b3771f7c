"""The events that follow from what a custom agent does."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from arkloop.shared.agents.agent_run import UNKNOWN_OUTCOME, Call
from arkloop.shared.agents.transcript import (
    CUT_OFF,
    MAX_OUTPUT_BYTES,
    NO_RESULT,
    NOT_MADE_AT_LIMIT,
    RecordedCall,
    Transcript,
    call_of,
    json_of,
    output_json,
)
from arkloop.shared.events.plain import plain
from arkloop.shared.events.types import Event, MessageCompleted, ToolResult
from arkloop.shared.events.usage import Usage


def call(call_id: str) -> Call:
    return Call(id=call_id, name="t", arguments={})


def kinds(events: list[Event]) -> list[str]:
    return [event.type for event in events]


def test_calls_up_to_the_first_result_are_of_one_turn() -> None:
    """A turn is finished by its first call; the call after a result begins another one."""
    transcript = Transcript()
    transcript.add_usage(Usage(input_tokens=3))

    first = transcript.call(call("a"), "Look.")
    second = transcript.call(call("b"), "")
    result = transcript.result("a", "1", is_error=False)
    third = transcript.call(call("c"), "")

    assert ["message.completed", "tool.call"] == kinds(first) == kinds(third)
    assert (["tool.call"], ["tool.result"]) == (kinds(second), kinds(result))
    assert not transcript.is_lost("c")
    assert isinstance(first[0], MessageCompleted)
    assert ("Look.", 3) == (first[0].content, first[0].usage.input_tokens)


def test_a_call_has_one_result() -> None:
    """A second result is dropped, and one without a call is refused."""
    transcript = Transcript([RecordedCall(call("a"), "1")])

    assert [] == transcript.result("a", "2", is_error=True)
    assert "1" == transcript.output_of("a")
    with pytest.raises(ValueError, match="no call 'b'"):
        transcript.result("b", "", is_error=False)


def test_calls_of_a_lost_execution_are_settled_once() -> None:
    """Calls without a result get an unknown outcome, but for those that got another one."""
    transcript = Transcript(
        [RecordedCall(call("a")), RecordedCall(call("b")), RecordedCall(call("c"), "1")]
    )
    assert ["a", "b"] == [one["id"] for one in transcript.pending]
    assert [True, False] == [transcript.is_lost(call_id) for call_id in ("a", "c")]
    transcript.result("a", "done", is_error=False)

    [settled] = transcript.settle()

    assert ("b", UNKNOWN_OUTCOME) == (settled.tool_call_id, settled.output)  # type: ignore[union-attr]  # a result
    assert [] == transcript.settle()


def test_a_call_that_is_made_again_is_not_settled() -> None:
    """A lost call that is repeated gets the result of its repetition."""
    transcript = Transcript([RecordedCall(call("a")), RecordedCall(call("b"))])

    transcript.begin("a")

    assert ["b"] == [one["id"] for one in transcript.pending]
    assert ["tool.result"] == kinds(transcript.settle())
    assert ["tool.result"] == kinds(transcript.result("a", "1", is_error=False))


def test_the_run_ends_no_call_before_its_own_end() -> None:
    """A recorded call may be made after another turn has begun; at the end it has a result. One in
    progress is left.
    """
    transcript = Transcript([RecordedCall(call("a")), RecordedCall(call("b"), is_unbegun=True)])
    for id_ in ("handoff", "step", "done"):
        transcript.call(call(id_), "Look.")
    transcript.begin("step")
    transcript.result("done", "1", is_error=False)
    assert ["a", "b"] == [one.tool_call_id for one in transcript.settle()]  # type: ignore[union-attr]  # results

    [ended] = transcript.close()

    assert isinstance(ended, ToolResult)
    assert ("handoff", NO_RESULT, True) == (ended.tool_call_id, ended.output, ended.is_error)
    assert [] == transcript.close()


def test_a_limit_ends_all_calls() -> None:
    """Calls that are known not to have begun were not made; any other may have had its effect."""
    transcript = Transcript([RecordedCall(call("a")), RecordedCall(call("b"), is_unbegun=True)])
    for id_ in ("step", "done", "new"):
        transcript.call(call(id_), "Look.")
    transcript.begin("step")
    transcript.result("done", "1", is_error=False)

    ended = [event for event in transcript.cut_off() if isinstance(event, ToolResult)]

    outputs = [UNKNOWN_OUTCOME, NOT_MADE_AT_LIMIT, CUT_OFF, NOT_MADE_AT_LIMIT]
    assert all(one.is_error for one in ended)
    assert list(zip(("a", "b", "step", "new"), outputs, strict=True)) == [
        (one.tool_call_id, one.output) for one in ended
    ]
    assert [] == transcript.cut_off()


@pytest.mark.parametrize(
    ("name", "arguments", "call_id"),
    [
        ("", {}, None),
        (1, {}, None),
        ("t", {"x": object()}, None),
        ("t", {"x": float("nan")}, None),
        ("t", {}, "a b"),
        ("t", {}, "x" * 129),
        ("t", {}, 1),
    ],
)
def test_a_call_that_cannot_be_recorded_is_refused(name: Any, arguments: Any, call_id: Any) -> None:
    """Names, arguments and ids are checked where the agent's author sees the error."""
    with pytest.raises(ValueError):
        call_of(name, arguments, call_id)


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("a\0\0b", "a\ufffd\ufffdb"),
        ({"a\0": ["\0"]}, {"a\ufffd": ["\ufffd"]}),
        ("\ud800", "\ufffd"),
        ("\\\0", "\\\ufffd"),
        ("\\u0000", "\\u0000"),
        ("\\\\u0000\0", "\\\\u0000\ufffd"),
    ],
)
def test_what_postgres_cannot_store_is_replaced(value: Any, stored: Any) -> None:
    """A checkpoint and a call have U+FFFD for NUL, in strings and in names, as events have it."""
    assert stored == json.loads(json_of(value))
    assert plain(value) == call_of("t", value, "a")["arguments"] == stored


def test_a_value_that_is_nested_too_deep_is_refused() -> None:
    """A checkpoint that could not be read again is not stored."""
    deep: Any = []
    for _ in range(1000):
        deep = [deep]

    with pytest.raises(ValueError):
        json_of(deep)


def test_an_output_has_spaces_as_far_as_they_fit() -> None:
    """They do not make it longer than a service accepts."""
    rows = ["a"] * 230_000

    assert '{"a": 1}' == output_json({"a": 1}, "")
    assert '{"a":1}' == output_json({"a": 1}, '{"a":1')
    for said in ("", "Working on it. ", '{"rows": ["a"'):
        assert MAX_OUTPUT_BYTES > len(output_json({"rows": rows}, said))
    assert '{"a": NaN}' == output_json({"a": float("nan")}, "")


@pytest.mark.parametrize("is_ascii", [True, False])
@pytest.mark.parametrize("separators", [None, (",", ":")])
def test_an_output_is_spelled_as_it_was_streamed(
    is_ascii: bool, separators: tuple[str, str] | None
) -> None:
    """Python escapes what is not ASCII unless it is asked not to, and models do not."""
    output = {"city": "Zürich \x7f\U0001f600\n", "rows": [1, 2]}
    text = json.dumps(output, ensure_ascii=is_ascii, separators=separators)

    assert text == output_json(output, text) == output_json(output, text[:20])
    assert json.dumps(output, ensure_ascii=False) == output_json(output, "")
    assert '"\ufffd"' == output_json("\ud800", '"\\ud800"')


class Lazy(dict[str, Any]):
    """An object that computes its properties whenever it is written."""

    def __init__(self, compute: Callable[[], Any]) -> None:
        super().__init__(n=None)
        self._compute = compute

    def items(self) -> Any:
        """Return the properties."""
        return [("n", self._compute())]


def _fails() -> None:
    raise ValueError("postgres://app:hunter2@db")


class Rows(list[int]):
    """A list that reads its items from a database."""

    def __iter__(self) -> Any:
        return _fails()


@pytest.mark.parametrize(
    ("returned", "why"),
    [
        (Lazy(_fails), "ValueError"),
        (Lazy(iter([1]).__next__), "StopIteration"),  # when it is written once more
        ({(1, 2): 3}, "TypeError"),
        ({"n": Rows([1])}, "ValueError"),
        ({"n": {1}}, "Object of type set is not JSON serializable"),
    ],
)
def test_why_an_output_is_not_json_holds_no_text_of_others(returned: Any, why: str) -> None:
    """An object of a class may raise anything; the run's error names its exception's class."""
    with pytest.raises(ValueError, match="The agent returned") as raised:
        output_json(returned, "")

    assert f"The agent returned an object that is not JSON: {why}." == str(raised.value)
