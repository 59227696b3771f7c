"""Tool calls in OpenAI's chunks, also those of compatible servers with ways of their own."""

from typing import Any

import pytest

from arkloop.worker.contract.messages import ToolCall
from tests.worker.providers.fake_vendor import delta, written
from tests.worker.providers.openai_chat_stream import answered, end


def test_parallel_tool_calls_are_put_together_from_their_pieces() -> None:
    """Arguments that are no JSON are passed on as the text they were."""

    def piece(index: int, **fields: Any) -> dict[str, Any]:
        return delta(tool_calls=[{"index": index, **fields}])

    found = end(
        piece(0, id="a", type="function", function={"name": "calculator", "arguments": '{"exp'}),
        piece(1, id="b", type="function", function={"name": "current_time", "arguments": ""}),
        piece(0, function={"arguments": 'ression": "2"}'}),
        piece(2, id="c", type="function", function={"name": "x", "arguments": "{broken"}),
        delta(finish="tool_calls"),
    )

    assert (
        ToolCall("a", "calculator", {"expression": "2"}),
        ToolCall("b", "current_time", {}),
        ToolCall("c", "x", "{broken"),
    ) == found.tool_calls
    assert found.usage is None


@pytest.mark.parametrize(
    "pieces",
    [
        # Without an index: a new id, or a name without one, begins the next call.
        [
            {"id": "a", "function": {"name": "f", "arguments": '{"x": 1}'}},
            {"id": "b", "function": {"name": "g", "arguments": "{}"}},
        ],
        [
            {"id": "a", "function": {"name": "f", "arguments": '{"x":'}},
            {"id": "a", "function": {"arguments": " 1}"}},
            {"id": "b", "function": {"name": "g", "arguments": ""}},
        ],
        # The name in each piece.
        [
            {"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x":'}},
            {"index": 0, "id": "a", "function": {"name": "f", "arguments": " 1}"}},
            {"index": 1, "id": "b", "function": {"name": "g", "arguments": None}},
        ],
        # The function is missing where there is nothing of it.
        [
            {"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x": 1}'}},
            {"index": 1, "id": "b", "function": {"name": "g"}},
            {"index": 1},
        ],
        # All at one place, as of Gemini: each is whole.
        [
            {"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x": 1}'}},
            {"index": 0, "id": "b", "function": {"name": "g", "arguments": "{}"}},
        ],
        # The same in pieces, after the first without an id or with that of their call.
        [
            {"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}},
            {"index": 0, "id": "", "function": {"name": None, "arguments": '{"x": 1'}},
            {"index": 0, "id": "a", "function": {"arguments": "}"}},
            {"index": 0, "id": "b", "function": {"name": "g", "arguments": ""}},
            {"index": 0, "id": "b", "function": {"name": "g", "arguments": "{}"}},
        ],
        # Each piece with an id of its own.
        [
            {"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x":'}},
            {"index": 0, "id": "7", "function": {"arguments": " 1"}},
            {"index": 0, "id": "a", "function": {"name": "f", "arguments": "}"}},
            {"index": 1, "id": "b", "function": {"name": "g", "arguments": "{}"}},
        ],
    ],
)
def test_tool_calls_of_servers_with_their_own_ways(pieces: list[dict[str, Any]]) -> None:
    """Two calls, however they are cut."""
    chunks = [delta(tool_calls=[piece]) for piece in pieces]

    found = end(*chunks, delta(finish="tool_calls")).tool_calls

    assert (ToolCall("a", "f", {"x": 1}), ToolCall("b", "g", {})) == found


@pytest.mark.parametrize(
    "pieces",
    [
        # Each piece with an id of its own and the whole name, the first without arguments.
        [("a", "calculator", ""), ("b", "calculator", '{"x":'), ("c", "calculator", " 1}")],
        [("a", "calculator", None), ("c", "calculator", '{"x": 1}')],
        # The name as far as it is known.
        [("c", "calc", ""), ("c", "calculator", '{"x": 1}')],
        [("c", "calc", ""), ("", "calculator", ""), (None, "calculator", '{"x": 1}')],
        # The name in pieces.
        [("c", "calc", ""), (None, "ulator", '{"x": 1}')],
        # The arguments as the object that they are.
        [("c", "calculator", {"x": 1})],
    ],
)
def test_one_call_however_it_comes(pieces: list[tuple[str | None, str, Any]]) -> None:
    """A call is made once with all its arguments, however its pieces arrive."""
    calls = [
        {"index": 0, "id": call_id, "function": {"name": name, "arguments": arguments}}
        for call_id, name, arguments in pieces
    ]

    found = end(*(delta(tool_calls=[call]) for call in calls), delta(finish="tool_calls"))

    assert (ToolCall("c", "calculator", {"x": 1}),) == found.tool_calls


@pytest.mark.parametrize(("sent", "read"), [(None, {}), ("", {}), ('{"x": ', '{"x": ')])
def test_a_call_that_is_not_whole_ends_where_another_begins(sent: str | None, read: Any) -> None:
    """An incomplete call ends where another one begins, with the arguments it has."""
    calls = [
        {"index": 0, "id": "a", "function": {"name": "f", "arguments": sent}},
        {"index": 0, "id": "b", "function": {"name": "g", "arguments": "{}"}},
    ]

    found = end(*(delta(tool_calls=[call]) for call in calls), delta(finish="tool_calls"))

    assert (ToolCall("a", "f", read), ToolCall("b", "g", {})) == found.tool_calls


@pytest.mark.parametrize(
    "pieces",
    [
        [("f", '{"x": 1}'), ("f", '{"x": 2}')],
        [("f", '{"x": 1}'), ("f", ""), ("f", '{"x":'), (None, " 2}"), ("f", "")],
        [("f", '{"x":'), ("f", " 1}"), ("f", '{"x": 2}'), ("f", "\n")],
    ],
)
def test_calls_of_one_place_without_ids_are_told_apart(
    pieces: list[tuple[str | None, str]],
) -> None:
    """Calls without ids at one place are separated by a name that arrives after complete
    arguments.
    """
    calls = [
        {"index": 0, "id": "", "function": {"name": name, "arguments": arguments}}
        for name, arguments in pieces
    ]

    found = end(*(delta(tool_calls=[call]) for call in calls), delta(finish="tool_calls"))

    assert (
        ToolCall("call_1_1", "f", {"x": 1}),
        ToolCall("call_1_2", "f", {"x": 2}),
    ) == found.tool_calls


def test_arguments_are_streamed_with_the_call_that_they_belong_to() -> None:
    """The pieces of two calls alternate; the name of one comes in two pieces."""

    def piece(index: int, **fields: Any) -> dict[str, Any]:
        return delta(tool_calls=[{"index": index, **fields}])

    chunks = answered(
        piece(0, id="a", type="function", function={"name": "calcu", "arguments": ""}),
        piece(1, id="b", type="function", function={"name": "current_time", "arguments": "{"}),
        piece(0, function={"name": "lator", "arguments": '{"expression"'}),
        piece(1, function={"arguments": "}"}),
        piece(0, function={"arguments": ': "2"}'}),
        delta(finish="tool_calls"),
    )

    assert written(chunks) == [
        ToolCall("a", "calculator", '{"expression": "2"}'),
        ToolCall("b", "current_time", "{}"),
    ]


def test_tool_calls_without_ids_get_some() -> None:
    """Calls without ids get ids from the turn and their place in it."""
    calls = [{"index": i, "function": {"name": "f", "arguments": "{}"}} for i in (0, 1)]

    found = end(delta(tool_calls=calls), delta(finish="tool_calls"))

    assert ["call_1_1", "call_1_2"] == [call.id for call in found.tool_calls]
