"""The call of an agent, whatever it returns."""

import asyncio
import functools
import sys
import threading
from typing import Any

import pytest

from arkloop.agents import AgentRun
from arkloop.shared.agents.agent_call import AgentCall, AgentFunction
from arkloop.testing import play_agent


def greeter(run: Any) -> str:
    return f"Hello, {run}."


async def late_greeter(run: Any) -> str:
    await asyncio.sleep(0)
    return greeter(run)


class Greeter:
    """An agent that is an object."""

    async def __call__(self, run: Any) -> str:
        return await late_greeter(run)


@functools.wraps(late_greeter)
def decorated(run: Any) -> Any:
    return late_greeter(run)


@pytest.mark.parametrize("agent", [greeter, late_greeter, decorated, Greeter()])
def test_whatever_is_to_be_awaited_is_awaited(agent: AgentFunction) -> None:
    """An agent is a function, a coroutine function, one behind a decorator, or an object."""
    run: Any = "you"

    assert "Hello, you." == AgentCall(agent)(run)


def test_a_call_is_cancelled_where_it_waits() -> None:
    """Another thread cancels it; a call that is over has nothing to cancel."""
    waits = threading.Event()

    async def agent(_: Any) -> None:
        waits.set()
        await asyncio.sleep(120)

    run: Any = None
    call = AgentCall(agent)
    stopping = threading.Thread(target=lambda: waits.wait(60) and call.cancel())
    stopping.start()
    with pytest.raises(asyncio.CancelledError):
        call(run)
    stopping.join()
    call.cancel()


async def booker(run: AgentRun) -> str:
    """Make a booking by a step whose coroutine runs in the agent's loop, as the docs show it."""

    async def book_room() -> str:
        sys.exit("No room.")

    def make() -> str:
        return asyncio.run_coroutine_threadsafe(book_room(), loop).result()

    loop = asyncio.get_running_loop()
    beside = asyncio.create_task(asyncio.sleep(0.2, "Paid."))
    booked = await asyncio.to_thread(run.step, "book", {}, make, tool_call_id="book-1")
    return f"{booked} {await beside}"


def test_a_coroutine_of_a_step_that_exits_fails_its_call_alone() -> None:
    """Event loops pass SystemExit on to their callers: what the agent awaits beside continues."""
    run = play_agent(booker, "Hi.")

    assert ("completed", "The tool failed: SystemExit. Paid.") == (run.status, run.output)
    assert ["The tool failed: SystemExit."] == [result.output for result in run.results]


def test_an_agent_that_exits_has_ended() -> None:
    """The loop is closed, and what the agent left in it is cancelled."""
    left: list[asyncio.Task[None]] = []

    async def agent(_: Any) -> None:
        left.append(asyncio.create_task(asyncio.sleep(60)))
        await asyncio.sleep(0)
        sys.exit("Enough.")

    run: Any = None
    with pytest.raises(SystemExit, match="Enough"):
        AgentCall(agent)(run)

    assert left[0].cancelled()


def test_a_call_that_is_cancelled_early_ends_where_it_waits() -> None:
    """Some agents load a model before they return what is to be awaited."""
    run: Any = None

    def agent(_: Any) -> Any:
        call.cancel()
        return asyncio.sleep(10)

    call = AgentCall(agent)
    with pytest.raises(asyncio.CancelledError):
        call(run)


def test_a_coroutine_is_called_in_a_thread_without_a_running_event_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Elsewhere the error says how to play it, and the thread keeps its event loop."""
    you: Any = "you"

    async def of_a_test() -> None:
        assert "failed" == play_agent(late_greeter, "Hi.").status
        with pytest.raises(RuntimeError, match="asyncio.to_thread"):
            AgentCall(late_greeter)(you)
        assert asyncio.get_running_loop() is asyncio.get_event_loop_policy().get_event_loop()
        assert "Hello, you." == AgentCall(greeter)(you)
        assert "Hello, you." == await asyncio.to_thread(AgentCall(late_greeter), you)

    asyncio.run(of_a_test())

    assert "asyncio.to_thread(play_agent" in caplog.text


def test_a_played_agent_may_ask_in_a_task_group() -> None:
    """It ends with a group of exceptions, which is no fault of it: its run waits."""

    async def asks(run: AgentRun) -> None:
        run.ask("Sure?")

    async def agent(run: AgentRun) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asks(run))

    assert play_agent(agent, "Hi.").status == "waiting_for_input"
