"""Steps whose functions raise what is not derived from Exception, and costs."""

import asyncio
from collections.abc import Callable
from typing import NoReturn

import gevent
import pytest
from greenlet import GreenletExit

from arkloop.agents import AgentRun
from arkloop.testing import play_agent


class PanicException(BaseException):
    """The panic of a library in Rust, as its bindings raise it."""


def _raising(error: BaseException) -> Callable[[], NoReturn]:
    def function() -> NoReturn:
        raise error

    return function


@pytest.mark.parametrize(
    "error",
    [
        gevent.Timeout(1),
        PanicException(),
        BaseException(),
        BaseExceptionGroup("tasks", [PanicException()]),
    ],
)
@pytest.mark.parametrize("timeout_seconds", [None, 30])
def test_whatever_a_step_raises_fails_its_call_alone(
    error: BaseException, timeout_seconds: float | None
) -> None:
    """The model reads the class, as of a tool that raises, and the run continues."""

    def agent(run: AgentRun) -> str:
        look = _raising(error)
        return run.step("look", {}, look, tool_call_id="a", timeout_seconds=timeout_seconds)

    run = play_agent(agent, "Hi.")

    failed = f"The tool failed: {type(error).__name__}."
    assert ("completed", failed) == (run.status, run.output)
    assert [(failed, True)] == [(result.output, result.is_error) for result in run.results]


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        GeneratorExit(),
        GreenletExit(),
        pytest.fail.Exception("The order was paid twice."),
        pytest.skip.Exception("No network."),
    ],
)
def test_what_ends_more_than_a_call_passes_through_a_step(error: BaseException) -> None:
    """The test of an agent fails if pytest's `fail` is called within a step."""

    def agent(run: AgentRun) -> str:
        return run.step("look", {}, _raising(error), tool_call_id="a")

    with pytest.raises(type(error)):
        play_agent(agent, "Hi.")


def test_a_question_in_a_task_group_passes_through_a_step() -> None:
    """The call has no result: it is not the step that failed, its run waits for a person."""

    async def ask(run: AgentRun) -> None:
        run.ask("Which one?")

    async def tasks_of(run: AgentRun) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ask(run))

    def agent(run: AgentRun) -> str:
        return run.step("look", {}, lambda: asyncio.run(tasks_of(run)), tool_call_id="a")

    run = play_agent(agent, "Hi.")

    assert "waiting_for_input" == run.status
    assert [] == run.results


def test_a_call_of_a_model_without_a_name_has_the_price_of_the_runs_model() -> None:
    """An empty name is none, in the test of an agent as in the service."""

    def agent(run: AgentRun) -> str:
        run.cost(model="", input_tokens=3)
        return "Done."

    [cost] = play_agent(agent, "Hi.").data_of("run.cost")

    assert [("scripted-1", 0.000003)] == [
        (part["model"], part["cost_usd"]) for part in cost["routes"]
    ]
