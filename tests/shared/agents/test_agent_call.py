"""The call of an agent, whatever it returns."""

import asyncio
import functools
import threading
from typing import Any

import pytest

from arkloop.shared.agents.agent_call import AgentCall, AgentFunction


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


def test_a_call_that_is_cancelled_early_ends_where_it_waits() -> None:
    """Some agents load a model before they return what is to be awaited."""
    run: Any = None

    def agent(_: Any) -> Any:
        call.cancel()
        return asyncio.sleep(10)

    call = AgentCall(agent)
    with pytest.raises(asyncio.CancelledError):
        call(run)
