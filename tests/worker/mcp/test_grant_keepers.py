"""Requests of the worker that wait in a session with OAuth, and store its new grants."""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

import mcp_types as types
import pytest

from arkloop.worker.mcp import McpFailed, grant_keepers
from arkloop.worker.mcp.grant_keepers import GrantKeepers
from arkloop.worker.mcp.open_calls import OpenCall


def test_no_token_is_requested_while_a_call_is_held() -> None:
    """No request of the worker would store it: its run waits for a person's reply."""

    async def story() -> None:
        keepers, call = GrantKeepers(), OpenCall(20.0, 20.0, lambda fields: None)
        is_over = asyncio.Event()
        waiting = asyncio.create_task(keepers.during(call, lambda: None, is_over.wait()))
        await asyncio.sleep(0)
        keepers.begin_token_request()

        call.is_held = True
        with pytest.raises(McpFailed):
            keepers.begin_token_request()

        call.is_held = False
        keepers.begin_token_request()
        keepers.end_token_request()
        is_over.set()
        assert await waiting
        with pytest.raises(McpFailed):
            keepers.begin_token_request()

    asyncio.run(story())


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_a_request_with_its_result_waits_for_tokens_on_their_way(is_cancelled: bool) -> None:
    """They may be for the reply to a ping, which the server need not wait for. A call that is
    cancelled meanwhile ends as a cancelled one.
    """
    sent: list[Mapping[str, Any]] = []
    result = {"text": "done"}

    async def story() -> None:
        keepers, call = GrantKeepers(), OpenCall(20.0, 20.0, sent.append)
        has_result = asyncio.Event()

        async def work() -> dict[str, Any]:
            await has_result.wait()
            return result

        call.begin(keepers.during(call, lambda: call.send({"grant": "kept"}), work()))
        waiting = asyncio.create_task(call.outcome())
        await asyncio.sleep(0.01)
        keepers.begin_token_request()
        has_result.set()
        await asyncio.sleep(0.01)
        assert not waiting.done()
        if is_cancelled:
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        keepers.keep()
        keepers.end_token_request()
        if not is_cancelled:
            assert result == await waiting
        await asyncio.sleep(0.01)

    asyncio.run(story())
    assert [{"grant": "kept"}] * 2 == sent[:2]
    assert ["cancelled"] * is_cancelled == [fields["kind"] for fields in sent[2:]]


def test_a_call_that_is_cancelled_as_it_becomes_held_ends() -> None:
    """It asks a person while tokens are on their way, and keeps those."""
    sent: list[Mapping[str, Any]] = []

    async def story() -> None:
        keepers, call = GrantKeepers(), OpenCall(20.0, 20.0, sent.append)
        call.hold = partial(keepers.hold, call)
        params = types.ElicitRequestFormParams(message="n?", requested_schema={"type": "object"})

        async def work() -> dict[str, Any]:
            keepers.begin_token_request()
            await call.ask(params)
            return {}

        call.begin(keepers.during(call, lambda: call.send({"grant": "kept"}), work()))
        waiting = asyncio.create_task(call.outcome())
        await asyncio.sleep(0.01)
        assert call.is_held and not waiting.done()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert [] == sent
        keepers.end_token_request()
        await asyncio.sleep(0.01)

    asyncio.run(story())
    assert [{"grant": "kept"}] == sent[:1]
    assert ["cancelled"] == [fields["kind"] for fields in sent[1:]]


@pytest.mark.parametrize("is_settled", [True, False])
def test_a_cancelled_request_waits_for_tokens_on_their_way(
    monkeypatch: pytest.MonkeyPatch, is_settled: bool
) -> None:
    """It waits for no longer than `SETTLE_SECONDS`, however often it is cancelled; only then is its
    work cancelled.
    """
    monkeypatch.setattr(grant_keepers, "SETTLE_SECONDS", 60.0 if is_settled else 0.1)
    did: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            did.append("the work has ended")

    async def story() -> None:
        keepers, call = GrantKeepers(), OpenCall(20.0, 20.0, lambda fields: None)
        waiting = asyncio.create_task(keepers.during(call, lambda: did.append("kept"), work()))
        await asyncio.sleep(0)
        keepers.begin_token_request()
        for _ in range(3):
            waiting.cancel()
            await asyncio.sleep(0.01)
        assert [] == did
        if is_settled:
            keepers.keep()
            keepers.end_token_request()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(story())
    assert [*["kept"] * is_settled, "kept", "the work has ended"] == did
