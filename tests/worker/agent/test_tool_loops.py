"""A model that goes round in a circle."""

from typing import Any

import pytest

from arkloop.worker.agent import tool_loops
from arkloop.worker.agent.conversation import Turn
from arkloop.worker.contract.messages import ToolCall, ToolMessage
from arkloop.worker.contract.outcomes import LimitExceeded


def turn(name: str, output: str = "out", **arguments: Any) -> Turn:
    call = ToolCall(f"id-{id(object())}", name, arguments)
    return Turn("m", "", [call], {call.id: ToolMessage(call.id, name, output)})


def test_the_same_call_with_the_same_result_ends_the_run() -> None:
    """The sixth equal turn in a row ends the run, whatever the ids and the order of arguments."""
    turns = [turn("t", x=1, y=2) for _ in range(3)] + [turn("t", y=2, x=1) for _ in range(2)]
    tool_loops.check(turns, 6)

    with pytest.raises(LimitExceeded, match="same calls of t .* 6 times") as ended:
        tool_loops.check([*turns, turn("t", x=1, y=2)], 6)

    assert "run.tool_loop" == ended.value.code


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_a_circle_of_a_few_turns_ends_the_run(names: str) -> None:
    """The fourth round of a circle ends the run, whatever came before."""
    turns = [turn("before"), *(turn(name) for name in names * 4)]
    tool_loops.check(turns[:-1], 6)

    with pytest.raises(LimitExceeded):
        tool_loops.check(turns, 6)


def test_a_loop_that_makes_progress_is_no_tool_loop() -> None:
    """Calls with other arguments or other results are no loop, such as polling."""
    tool_loops.check([turn("t", page=i) for i in range(30)], 6)
    tool_loops.check([turn("t", output=str(i)) for i in range(30)], 6)
    tool_loops.check([turn("t", output=str(i // 5)) for i in range(30)], 6)


@pytest.mark.parametrize("most", [2, 7, 40])
def test_the_persona_says_how_many_equal_turns_are_too_many(most: int) -> None:
    """An agent that polls something may be right to repeat itself."""
    tool_loops.check([turn("t")] * (most - 1), most)

    with pytest.raises(LimitExceeded, match=f"{most} times"):
        tool_loops.check([turn("t")] * most, most)
