"""Calls of a tool that are cancelled before, or just as, their function begins."""

import asyncio
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from arkloop.cli.serve.tool_call import ToolCall
from arkloop.cli.serve.tool_worker import ToolWorker
from arkloop.shared import ids
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.tools import tool
from tests.cli.serve.scripted_service import scripted_service
from tests.cli.serve.test_tool_worker import CALL

CANCELLED = ("fail", {"error": "The call was cancelled."})


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Run an event loop, as a worker does."""
    running = asyncio.new_event_loop()
    thread = threading.Thread(target=running.run_forever, daemon=True)
    thread.start()
    yield running
    running.call_soon_threadsafe(running.stop)
    thread.join(30)
    running.close()


def outcome(call: ToolCall) -> tuple[str, Any]:
    """Execute the call; return what it reports."""
    reported: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    call.start(lambda _, verb, result: reported.put((verb, result)))
    return reported.get(timeout=30)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_call_that_is_cancelled_before_it_begins_has_no_effect(
    loop: asyncio.AbstractEventLoop, is_async: bool
) -> None:
    """Neither the function nor the coroutine is begun."""
    effects: list[str] = []

    @tool(idempotent=False)
    def ship(context: ToolContext) -> str:
        """Send an order."""
        effects.append("shipped")
        return "shipped"

    @tool(idempotent=False)
    async def ship_later(context: ToolContext) -> str:
        """Send an order, in the event loop."""
        effects.append("shipped")
        return "shipped"

    call = ToolCall(ship_later if is_async else ship, {**CALL, "fence": 1}, loop)
    call.cancel()

    assert outcome(call) == CANCELLED
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(30)
    assert [] == effects


def test_a_coroutine_that_begins_as_its_call_is_cancelled_is_cancelled(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may run before the thread of its call waits for it."""
    begun, ended = threading.Event(), threading.Event()
    schedule = asyncio.run_coroutine_threadsafe

    @tool(idempotent=False)
    async def ship(context: ToolContext) -> str:
        """Send an order, which takes a minute."""
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return "shipped"

    call = ToolCall(ship, {**CALL, "fence": 1}, loop)

    def schedule_and_cancel(*args: Any) -> Any:
        scheduled = schedule(*args)
        assert begun.wait(30)
        call.cancel()
        return scheduled

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", schedule_and_cancel)

    assert outcome(call) == CANCELLED
    assert ended.wait(10)


def test_a_coroutine_that_is_cancelled_while_another_one_blocks_does_not_begin() -> None:
    """It waits for its turn in the event loop, and has no effect when that comes."""
    blocking, release, shipping = str(ids.new_id()), threading.Event(), str(ids.new_id())
    calls = [(shipping, "ship"), (blocking, "block")]
    effects: list[str] = []
    reported: SimpleQueue[tuple[str, str]] = SimpleQueue()
    begun = threading.Event()

    def respond(verb: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        match verb:
            case "poll":
                begun.wait(0.1)
                fetched = []
                if calls and (begun.is_set() or len(calls) == 2):
                    call_id, name = calls.pop()
                    fetched = [{**CALL, "call_id": call_id, "tool": name, "fence": 1}]
                return 200, {"tools_hash": "0" * 64, "cancelled": [], "calls": fetched}
            case "heartbeat":
                named = {call["call_id"] for call in body["calls"]}
                return 200, {"cancelled": [*(named & {shipping})], "lost": []}
        reported.put((body["call_id"], verb))
        return 200, {"ok": True, "cancelled": []}

    @tool(idempotent=False)
    async def block(context: ToolContext) -> str:
        """Block the event loop."""
        begun.set()
        release.wait(30)
        return "done"

    @tool(idempotent=False)
    async def ship(context: ToolContext) -> str:
        """Send an order."""
        effects.append("shipped")
        return "shipped"

    with scripted_service(respond) as address:
        worker = ToolWorker(
            *(address, "mine", {"block": block, "ship": ship}),
            concurrency=2,
            lease_seconds=3,
            grace_seconds=10,
        )
        working = threading.Thread(target=worker.run, daemon=True)
        working.start()
        assert (shipping, "fail") == reported.get(timeout=30)
        release.set()
        assert (blocking, "complete") == reported.get(timeout=30)
        worker.stop()
        working.join(30)

    assert [] == effects
