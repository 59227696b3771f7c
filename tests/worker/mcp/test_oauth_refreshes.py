"""Tokens that a session refreshes: only while a request of the worker waits, which stores them."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from arkloop.shared.ids import new_id
from arkloop.worker.contract.input_requests import InputRequired, Replies
from arkloop.worker.contract.outcomes import CancelRequested, ShuttingDown
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.mcp import Cancelled, McpFailed
from arkloop.worker.mcp.client import McpClient
from arkloop.worker.mcp.grants import SETTLE_SECONDS, has_expired
from tests.waiting import eventually
from tests.worker.mcp.lying_mcp_server import Lying
from tests.worker.mcp.oauth_servers import Internet, Process, granted, in_loop
from tests.worker.mcp.rotating_mcp_server import Person, rotating

PING = {"id": "ping", "method": "ping"}


def done(handler: Lying) -> None:
    content = [{"type": "text", "text": "done"}]
    handler.result(handler.message, {"content": content})


def next_access(person: Person) -> str:
    """Call a tool in another worker, with the access that is stored."""
    client = McpClient(allowed_networks=["127.0.0.0/8"])
    try:
        [tool] = client.tools(person.server, access=person)
        result = client.call(person.server, "lie", {}, pinned=tool.hash, access=person)
        assert isinstance(result, str)
        return result
    finally:
        client.close()


def received(person: Person, is_it: Callable[[dict[str, Any]], bool]) -> None:
    """Wait until the server has received such a message."""
    while not is_it(person.received.get(timeout=60)):
        pass


@pytest.mark.processes
def test_no_token_is_refreshed_for_a_reply_to_a_ping(http_client: McpClient) -> None:
    """The token expires in an idle session; the next call of the person, in another worker,
    refreshes it.
    """
    expired, over = threading.Event(), threading.Event()

    def stream(handler: Lying) -> None:
        handler.begin_stream()
        expired.wait(60)
        handler.say(PING)
        over.wait(60)
        handler.close_connection = True

    with rotating(done, 1, do_GET=stream) as person:
        http_client.tools(person.server, access=person)
        eventually(lambda: has_expired(person.grant or {}))
        expired.set()
        received(person, lambda message: message.get("id") == PING["id"])
        over.set()

        assert "done" == next_access(person)
        assert person.has_newest


@pytest.mark.processes
def test_no_token_is_refreshed_to_cancel_a_call(http_client: McpClient) -> None:
    """It expires during the call; the person's next one refreshes it."""
    stop, is_over = StopSignal(), threading.Event()

    def call(handler: Lying) -> None:
        if not is_over.is_set():
            eventually(lambda: has_expired(person.grant or {}))
            stop.set(CancelRequested())
            is_over.wait(60)
        done(handler)

    with rotating(call, 1) as person:
        [tool] = http_client.tools(person.server, access=person)
        how: dict[str, Any] = {"pinned": tool.hash, "access": person, "context": stop}
        with pytest.raises(CancelRequested):
            http_client.call(person.server, "lie", {}, **how)
        received(person, lambda message: message.get("method") == "notifications/cancelled")
        is_over.set()

        assert "done" == next_access(person)
        assert person.has_newest


@pytest.mark.processes
@pytest.mark.parametrize("is_held", [False, True])
def test_a_refresh_for_a_ping_outlasts_the_call(http_client: McpClient, is_held: bool) -> None:
    """The server sends the result, or a question to a person, without the reply: the person's next
    call has the new token.
    """
    refreshing = threading.Event()

    def refresh() -> None:
        refreshing.set()
        time.sleep(1.5)

    def call(handler: Lying) -> None:
        if not refreshing.is_set():
            eventually(lambda: has_expired(person.grant or {}))
            handler.begin_stream()
            handler.say(PING)
            assert refreshing.wait(60)
            if is_held:
                handler.say(handler.question("n?"))
                handler.replies["n?"].get(timeout=60)
            content = [{"type": "text", "text": "done"}]
            handler.say({"id": handler.message["id"], "result": {"content": content}})
            handler.close_connection = True
        else:
            done(handler)

    with rotating(call, 1) as person:
        [tool] = http_client.tools(person.server, access=person)
        person.on_refresh = refresh
        how: dict[str, Any] = {"pinned": tool.hash, "access": person, "run_id": str(new_id())}
        if is_held:
            with pytest.raises(InputRequired) as required:
                http_client.call(person.server, "lie", {}, **how)
        else:
            assert "done" == http_client.call(person.server, "lie", {}, **how)
        assert person.has_newest
        person.on_refresh = lambda: None
        assert "done" == next_access(person)
        if is_held:
            reply = {required.value.asked[0]["key"]: {"action": "decline"}}
            how["replies"] = Replies(reply, None, required.value.held)
            assert "done" == http_client.call(person.server, "lie", {}, **how)


SAMPLING = {"id": "q", "method": "sampling/createMessage", "params": {"messages": []}}


@pytest.mark.processes
@pytest.mark.parametrize("question", [PING, SAMPLING])
def test_a_token_is_refreshed_for_a_reply_during_a_call(
    http_client: McpClient, question: dict[str, Any]
) -> None:
    """It expires during the call; the server waits for the reply, which no person gives."""

    def call(handler: Lying) -> None:
        eventually(lambda: has_expired(person.grant or {}))
        person.revoked = person.issued
        handler.begin_stream()
        handler.say(question)
        handler.replies[question["id"]].get(timeout=10)
        content = [{"type": "text", "text": "has the reply"}]
        handler.say({"id": handler.message["id"], "result": {"content": content}})
        handler.close_connection = True

    with rotating(call, 1) as person:
        [tool] = http_client.tools(person.server, access=person)
        how: dict[str, Any] = {"pinned": tool.hash, "access": person}
        assert "has the reply" == http_client.call(person.server, "lie", {}, **how)
        assert person.has_newest


@pytest.mark.processes
@pytest.mark.parametrize("is_modern", [False, True])
@pytest.mark.parametrize("is_cancelled", [True, False])
def test_a_refresh_outlasts_the_call_that_it_is_for(
    http_client: McpClient, is_cancelled: bool, is_modern: bool
) -> None:
    """The run is cancelled, or the call has run out of time, before the authorization server
    responds, to which the token before is a spent one: the person's next call has the new one.
    """
    stop, is_cut = StopSignal(), threading.Event()

    def cut() -> None:
        if not is_cut.is_set():
            is_cut.set()
            if is_cancelled:
                stop.set(CancelRequested())
            time.sleep(1.5)

    with rotating(done, 3600, is_modern=is_modern) as person:
        [tool] = http_client.tools(person.server, access=person)
        assert person.grant is not None
        # Only the server knows that the token is over.
        person.grant = {**person.grant, "expires_at": None, "obtained_at": 0.0}
        person.revoked, person.on_refresh = person.issued, cut
        how: dict[str, Any] = {"pinned": tool.hash, "access": person, "context": stop}
        with pytest.raises(CancelRequested if is_cancelled else McpFailed):
            http_client.call(person.server, "lie", {}, seconds=1.0, **how)

        assert is_cut.is_set()
        assert person.has_newest
        assert "done" == next_access(person)
        assert person.has_newest


@pytest.mark.processes
@pytest.mark.parametrize("has_stopped", [True, False])
def test_a_refresh_outlasts_its_worker(has_stopped: bool) -> None:
    """A worker that ends stores what the authorization server responds after its runs have stopped,
    or for a request that is of no run.
    """
    refreshing, answered, stop = threading.Event(), threading.Event(), StopSignal()

    def refresh() -> None:
        refreshing.set()
        answered.wait(60)

    def keep() -> None:
        keeping.set()
        kept.wait(60)

    keeping, kept = threading.Event(), threading.Event()
    client = McpClient(allowed_networks=["127.0.0.0/8"])
    with rotating(done, 3600) as person, ThreadPoolExecutor(2) as threads:
        assert person.grant is not None
        person.grant = {**person.grant, "expires_at": 1.0}
        person.on_refresh, person.on_keep = refresh, keep
        asked = threads.submit(client.tools, person.server, access=person, context=stop)
        assert refreshing.wait(60)
        if has_stopped:
            stop.set(ShuttingDown())
        closed = threads.submit(client.settle if has_stopped else client.close)
        with pytest.raises(TimeoutError):
            closed.result(2.0)
        with pytest.raises(Cancelled):  # as a call that has waited: the token is a spent one
            client.tools(person.server, access=person)
        answered.set()
        assert keeping.wait(60)
        with pytest.raises(TimeoutError):
            closed.result(0.5)
        kept.set()
        closed.result(60)

        with pytest.raises(ShuttingDown if has_stopped else Cancelled):
            asked.result(60)
        assert person.has_newest
        client.close()
        person.on_refresh = lambda: None
        assert "done" == next_access(person)


@pytest.mark.processes
def test_a_worker_that_ends_waits_for_no_request_without_new_tokens() -> None:
    """The list of a slow server is worth nothing then."""
    listing, over = threading.Event(), threading.Event()

    def wait(handler: Lying) -> None:
        listing.set()
        over.wait(60)
        done(handler)

    client = McpClient(allowed_networks=["127.0.0.0/8"])
    with rotating(wait, 3600) as person, ThreadPoolExecutor(1) as thread:
        [tool] = client.tools(person.server, access=person)
        how: dict[str, Any] = {"pinned": tool.hash, "access": person}
        called = thread.submit(client.call, person.server, "lie", {}, **how)
        assert listing.wait(60)
        began = time.monotonic()
        client.close()
        assert time.monotonic() - began < SETTLE_SECONDS
        over.set()
        with pytest.raises(McpFailed):
            called.result(60)


REPLY: dict[str, Any] = {"jsonrpc": "2.0", "id": 1}


@pytest.mark.parametrize(
    ("message", "refreshes"),
    [
        ({"jsonrpc": "2.0", "method": "notifications/progress"}, False),
        ({**REPLY, "error": {"code": -32601, "message": "Method not found"}}, True),
        ({**REPLY, "result": {}}, True),
        ({**REPLY, "result": {"action": "decline"}}, True),
        ({"jsonrpc": "2.0", "method": "notifications/initialized"}, True),
        ({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, True),
    ],
)
@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("is_waited_for", [True, False])
def test_a_token_is_refreshed_while_a_request_of_the_worker_waits(
    message: dict[str, Any], refreshes: bool, is_known: bool, is_waited_for: bool
) -> None:
    """Notifications, and all messages without such a request, have the token that is there, whether
    the time at which it expires is known or not.
    """
    refreshes &= is_waited_for

    async def story(internet: Internet) -> None:
        expires_at = time.time() - 1 if is_known else None
        grant = {**await granted(internet), "expires_at": expires_at}
        internet.valid.clear()
        process = Process(internet, {"grant": grant})

        sent = json.dumps(message)
        status = await process.post(sent, is_waited_for=is_waited_for)
        assert (200 if refreshes else 401) == status
        assert 1 + refreshes == len(internet.token_requests)
        if not refreshes:
            assert "Bearer access-1" == internet.seen[-1].headers["Authorization"]
            assert process.oauth.problem_of(None) is None

    in_loop(story)
