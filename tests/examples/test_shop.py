"""The shop of the example agents, without a framework."""

import threading

from arkloop.agents import AgentRun
from arkloop.shared.agents.transcript import CALL_ID
from arkloop.testing import play_agent
from examples.agents import _call_ids, _shop


def test_the_steps_of_a_run_are_made_one_after_the_other() -> None:
    """A step that waits for another one has not begun, and so is not lost if that one asks."""
    made: list[str] = []

    def agent(run: AgentRun) -> str:
        steps = _shop.Steps(run)

        def second() -> str:
            made.append("b")
            return ""

        other = threading.Thread(target=lambda: steps.make("find_order", {}, second, "b"))

        def first() -> str:
            other.start()
            other.join(0.3)
            made.append("a")
            return ""

        steps.make("find_order", {}, first, "a")
        other.join(10)
        return ""

    assert "completed" == play_agent(agent, "Cancel both.").status
    assert ["a", "b"] == made


def test_an_id_that_a_model_gives_twice_becomes_two() -> None:
    """An id is that of one call: under it a run would return the result of another one."""

    def agent(run: AgentRun) -> str:
        ids = _call_ids.CallIds(run)
        return " ".join(map(ids.new, ["call_0", "call_0", "a", "call_0", ""]))

    assert "call_0 call_0-2 a call_0-3 call" == play_agent(agent, "Cancel both.").output


def test_an_id_that_no_run_can_record_gets_another_one() -> None:
    """It is the same each time, and ids that differ at their ends stay two."""
    ids = [600 * "x" + "1", 600 * "x" + "2", "a b", "functions.a:0"]

    found = [_call_ids.recorded(call_id) for call_id in ids]

    assert 4 == len(set(found)) and found == [*map(_call_ids.recorded, found)]
    assert all(CALL_ID.fullmatch(call_id) for call_id in found)
    assert "functions.a:0" == found[-1]
