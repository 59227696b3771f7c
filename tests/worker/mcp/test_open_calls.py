"""Calls that stay in progress while a person is asked: by the protocols before 2026-07-28."""

import asyncio
import json
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import mcp_types as types
import pytest

from arkloop.shared.ids import new_id
from arkloop.worker.contract.input_requests import InputRequired, Replies
from arkloop.worker.contract.outcomes import CancelRequested
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.mcp import MAY_BE_DONE, McpFailed, failed_requests, open_calls
from arkloop.worker.mcp.client import McpClient
from arkloop.worker.mcp.open_calls import OpenCall
from arkloop.worker.mcp.sessions import REPLY_LOST
from tests.waiting import eventually, in_parallel
from tests.worker.mcp.lying_mcp_server import Lying, lying
from tests.worker.mcp.odd_server import Odd
from tests.worker.mcp.rotating_mcp_server import rotating
from tests.worker.mcp.sdk_server import server_at

pytestmark = pytest.mark.processes

ACCEPT = {"action": "accept", "content": {"seats": 3}}


def asked(call: Any) -> InputRequired:
    with pytest.raises(InputRequired) as raised:
        call()
    return raised.value


def replies_to(required: InputRequired, reply: dict[str, Any]) -> Replies:
    [request] = required.asked
    return Replies({request["key"]: reply}, required.state, required.held)


def cancelled(odd: Odd) -> bool:
    return any(entry.get("method") == "notifications/cancelled" for entry in odd.log)


def test_an_older_server_asks_during_its_call(odd: Odd) -> None:
    """The call is made once: each reply continues it, up to the next question or the result."""
    run_id = str(new_id())
    call = {"arguments": {"n": 2}, "run_id": run_id}

    first = asked(lambda: odd.call("ask", **call))
    assert ("form", "How many, ") == (first.asked[0]["kind"], first.asked[0]["prompt"][:10])
    assert run_id == odd.client.held.runs[str(first.held)]
    second = asked(lambda: odd.call("ask", replies=replies_to(first, ACCEPT), **call))
    assert first.asked[0]["prompt"] != second.asked[0]["prompt"]
    result = odd.call("ask", replies=replies_to(second, {"action": "decline"}), **call)

    assert [ACCEPT, {"action": "decline"}] == json.loads(result)
    assert 1 == sum(entry.get("method") == "tools/call" for entry in odd.log)
    assert run_id not in odd.client.held.runs.values()


def test_the_time_of_a_call_stands_still_while_a_person_is_asked(odd: Odd) -> None:
    """A reply may take longer than the call; after it the call has its time again."""
    required = asked(lambda: odd.call("ask", arguments={"n": 1}, run_id=str(new_id()), seconds=4))
    threading.Event().wait(4.5)
    assert not cancelled(odd)

    result = odd.call("ask", replies=replies_to(required, ACCEPT), run_id=str(new_id()))
    assert [ACCEPT] == json.loads(result)


def test_a_call_whose_run_does_not_wait_any_more_is_cancelled_at_the_server(odd: Odd) -> None:
    """The server may still work on it, and ask: not in the name of the next call."""
    call = {"arguments": {"n": 1}, "run_id": str(new_id())}
    asked(lambda: odd.call("ask", **call))
    odd.client.held.release([*odd.client.held.runs])
    eventually(lambda: cancelled(odd))

    assert "cannot tell which call" in odd.call("ask", **call)
    assert asked(lambda: odd.call("ask", **call)).held  # by another session
    assert 2 == len(odd.pids)


def test_a_call_that_is_continued_is_cancelled_with_its_run(odd: Odd) -> None:
    """A continued call is cancelled as any call in progress."""
    required = asked(lambda: odd.call("ask_and_hang", run_id=str(new_id())))
    stop = StopSignal()

    def cancel() -> None:
        eventually((odd.folder / "hangs").exists)
        stop.set(CancelRequested())

    threading.Thread(target=cancel).start()
    with pytest.raises(CancelRequested):
        odd.call("ask_and_hang", replies=replies_to(required, ACCEPT), context=stop)

    eventually(lambda: cancelled(odd))
    assert required.held not in odd.client.held.runs


def test_a_reply_to_a_call_of_another_process_fails_it(odd: Odd, tmp_path: Any) -> None:
    """The model reads why, and that the call may have taken effect; it is not made again."""
    required = asked(lambda: odd.call("ask", arguments={"n": 1}, run_id=str(new_id())))
    other = McpClient(stdio=True)
    try:
        there = Odd(other, tmp_path)
        with pytest.raises(McpFailed, match="connection of the call is lost.*may have taken eff"):
            there.call("ask", arguments={"n": 1}, replies=replies_to(required, ACCEPT))
    finally:
        other.close()
    assert 1 == sum(entry.get("method") == "tools/call" for entry in odd.log)


def test_a_question_is_refused_where_it_may_be_about_another_call(odd: Odd) -> None:
    """Over stdio nothing says which call it belongs to: nobody is asked for somebody else."""
    first = asked(lambda: odd.call("ask", arguments={"n": 1}, run_id=str(new_id())))

    [refused] = json.loads(odd.call("ask", arguments={"n": 1}, run_id=str(new_id())))

    assert "cannot tell which call" in refused["message"]
    # Whether it was the first or the second that asked, nobody knows then: the first may go on.
    result = odd.call("ask", replies=replies_to(first, ACCEPT), run_id=str(new_id()))
    assert [ACCEPT] == json.loads(result)


def ask(handler: Lying) -> None:
    """Ask during the call, and return what was replied."""
    question = str(handler.message["params"]["arguments"]["n"])
    number = handler.message["id"]
    handler.ask(question)
    reply = handler.replies[question].get()
    said = [{"type": "text", "text": f"{question}: {reply['result']['content']['n']}"}]
    handler.say({"id": number, "result": {"content": said}})


def test_each_call_over_http_gets_the_reply_to_its_own_question(http_client: McpClient) -> None:
    """Parallel calls share a session, and each has a stream of its own."""
    replies: dict[str, queue.Queue[dict[str, Any]]] = defaultdict(queue.Queue)

    with lying(ask, replies=replies) as (url, _):
        server = server_at(url)
        [tool] = http_client.tools(server)

        def call(n: int) -> str:
            how: dict[str, Any] = {"pinned": tool.hash, "run_id": str(new_id())}
            required = asked(lambda: http_client.call(server, "lie", {"n": n}, **how))
            assert str(n) == required.asked[0]["prompt"]
            reply = {"action": "accept", "content": {"n": f"reply {n}"}}
            answer = http_client.call(server, "lie", {}, replies=replies_to(required, reply), **how)
            assert isinstance(answer, str)
            return answer

        assert [f"{n}: reply {n}" for n in range(4)] == in_parallel(4, call)


def ask_two(handler: Lying) -> None:
    """Ask, withdraw the question once it was shown, ask another, and return what was replied."""
    number = handler.message["id"]
    handler.ask("first")
    handler.replies["shown"].get()
    handler.say({"method": "notifications/cancelled", "params": {"requestId": "first"}})
    handler.say(handler.question("second"))
    # Its response says that the client has read all that came before.
    handler.say({"id": "ping", "method": "ping"})
    reply = handler.replies["second"].get()
    said = [{"type": "text", "text": json.dumps(reply["result"]["content"])}]
    handler.say({"id": number, "result": {"content": said}})


def test_a_reply_to_a_withdrawn_question_is_dropped(http_client: McpClient) -> None:
    """The person gets the question that the server has asked in place of it."""
    replies: dict[str, queue.Queue[dict[str, Any]]] = defaultdict(queue.Queue)

    with lying(ask_two, replies=replies) as (url, _):
        server = server_at(url)
        [tool] = http_client.tools(server)
        how: dict[str, Any] = {"pinned": tool.hash, "run_id": str(new_id()), "seconds": 20.0}

        def reply(required: InputRequired, n: str) -> Any:
            given = replies_to(required, {"action": "accept", "content": {"n": n}})
            return http_client.call(server, "lie", {}, replies=given, **how)

        first = asked(lambda: http_client.call(server, "lie", {}, **how))
        replies["shown"].put({})
        replies["ping"].get(timeout=20)
        second = asked(lambda: reply(first, "of the first"))
        assert ["first", "second"] == [one.asked[0]["prompt"] for one in (first, second)]

        assert {"n": "of the second"} == json.loads(reply(second, "of the second"))


def question(text: str) -> types.ElicitRequestFormParams:
    return types.ElicitRequestFormParams(message=text, requested_schema={"type": "object"})


@pytest.mark.parametrize("ending_seconds", [0, 0.1])
def test_a_reply_to_a_call_that_waited_for_too_long_finds_it_cancelled(
    monkeypatch: pytest.MonkeyPatch, ending_seconds: float
) -> None:
    """The model reads this reason, also where the call is still ending; no connection was lost."""
    monkeypatch.setattr(open_calls, "MAX_OPEN_SECONDS", 0.01)
    sent: list[Mapping[str, Any]] = []

    async def work(call: OpenCall) -> dict[str, Any]:
        try:
            await call.ask(question("first"))
        finally:
            await asyncio.sleep(ending_seconds)
        return {}

    async def outcome() -> dict[str, Any]:
        call = OpenCall(20, 20, lambda fields: None)
        call.begin(work(call))
        assert "required" in await call.outcome()
        await asyncio.sleep(0.05)
        call.continue_with({"action": "accept"}, sent.append)
        return await call.outcome()

    why = "The call had waited for people for too long and was cancelled. It may have taken effect."
    assert {"failed": why, "kind": "failed"} == asyncio.run(outcome())
    assert [] == sent


def test_a_question_withdrawn_before_it_was_shown_is_not_asked() -> None:
    """The next question of the call is asked in its place."""

    async def outcome() -> dict[str, Any]:
        call = OpenCall(20, 20, lambda fields: None)
        withdrawn = asyncio.create_task(call.ask(question("first")))
        await asyncio.sleep(0)
        withdrawn.cancel()
        asking = asyncio.create_task(call.ask(question("second")))
        call.begin(asyncio.sleep(20, {}))
        try:
            return await call.outcome()
        finally:
            asking.cancel()
            call.cancel()

    [shown] = asyncio.run(outcome())["required"]["asked"]
    assert "second" == shown["prompt"]


def _hang_up(handler: Lying) -> None:
    handler.close_connection = True


def _refuse(handler: Lying) -> None:
    handler.send(404, b"")


@pytest.mark.parametrize(
    ("failure", "times", "expected"),
    [
        (_hang_up, 1, "1: reply"),
        (_refuse, 1, "1: reply"),
        (_hang_up, 2, f"{REPLY_LOST} {failed_requests.LOST}{MAY_BE_DONE}"),
        (_refuse, 2, f"{REPLY_LOST} The server responded with HTTP status 404.{MAY_BE_DONE}"),
    ],
)
def test_a_reply_that_fails_is_sent_once_more(
    http_client: McpClient, failure: Callable[[Lying], None], times: int, expected: str
) -> None:
    """If that fails as well its call does, and does not wait for its whole time."""
    replies: dict[str, queue.Queue[dict[str, Any]]] = defaultdict(queue.Queue)
    failures: list[Lying] = []

    def fail(handler: Lying) -> None:
        if len(failures) == times:
            Lying.on_reply(handler)
        else:
            failures.append(handler)
            failure(handler)

    with lying(ask, replies=replies, on_reply=fail) as (url, _):
        server = server_at(url)
        [tool] = http_client.tools(server)
        how: dict[str, Any] = {"pinned": tool.hash, "run_id": str(new_id()), "seconds": 10.0}
        required = asked(lambda: http_client.call(server, "lie", {"n": 1}, **how))
        reply = {"action": "accept", "content": {"n": "reply"}}
        try:
            result = http_client.call(server, "lie", {}, replies=replies_to(required, reply), **how)
        except McpFailed as failed:
            result = str(failed)
        replies["1"].put({"result": reply})  # in place of one that was lost

    assert expected == result
    assert times == len(failures)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"name": "renamed"},
        {"headers": {"X-Team": "other"}},
        {"redirect_uri": "https://b.test/"},
    ],
)
def test_a_continued_call_has_the_newest_access(
    http_client: McpClient, changes: dict[str, Any]
) -> None:
    """The person's token was refreshed since the question, perhaps under other settings."""
    with rotating(ask, seconds=3600) as person:
        how: dict[str, Any] = {"run_id": str(new_id()), "access": person}
        server = person.server
        [tool] = http_client.tools(server, access=person)
        how["pinned"] = tool.hash
        required = asked(lambda: http_client.call(server, "lie", {"n": 1}, **how))
        person.refresh()
        if "redirect_uri" in changes:
            changes = {"oauth": {**(server.oauth or {}), **changes}}
        server = replace(server, **changes)

        reply = replies_to(required, {"action": "accept", "content": {"n": "reply"}})
        assert "1: reply" == http_client.call(server, "lie", {}, replies=reply, **how)
        assert person.has_newest


@pytest.mark.parametrize("is_authorized", [True, False])
def test_a_continued_call_has_no_access_to_another_address(
    http_client: McpClient, is_authorized: bool
) -> None:
    """An admin has moved the server while the person was asked, who may have authorized access to
    the new address since: the call ends at the former one, with the access to that.
    """
    seen: list[str | None] = []

    def note(handler: Lying) -> None:
        seen.append(handler.headers["Authorization"])
        Lying.on_reply(handler)

    with rotating(ask, seconds=3600, on_reply=note) as person, rotating(ask, 3600) as there:
        how: dict[str, Any] = {"run_id": str(new_id())}
        [tool] = http_client.tools(person.server, access=person)
        how["pinned"] = tool.hash
        required = asked(
            lambda: http_client.call(person.server, "lie", {"n": 1}, access=person, **how)
        )
        there.refresh()
        moved = replace(person.server, url=there.url)
        if not is_authorized:
            there.grant = None

        reply = replies_to(required, {"action": "accept", "content": {"n": "reply"}})
        result = http_client.call(moved, "lie", {}, replies=reply, access=there, **how)

    assert "1: reply" == result
    assert ["Bearer access_token-1"] == seen


def test_replies_to_two_questions_have_access(http_client: McpClient) -> None:
    """A call asks both at once; the second is shown before the server refuses the first reply, as
    only the server knows that the token is over.
    """

    def ask_both(handler: Lying) -> None:
        handler.ask("1")
        handler.say(handler.question("2"))
        replies = [handler.replies[text].get()["result"]["content"]["n"] for text in ("1", "2")]
        said = [{"type": "text", "text": json.dumps(replies)}]
        handler.say({"id": handler.message["id"], "result": {"content": said}})

    with rotating(ask_both, seconds=3600) as person:
        assert person.grant is not None
        person.grant = {**person.grant, "expires_at": None, "obtained_at": 0.0}
        how: dict[str, Any] = {"run_id": str(new_id()), "access": person}
        [tool] = http_client.tools(person.server, access=person)
        how["pinned"] = tool.hash

        def reply(required: InputRequired, n: str) -> Any:
            given = replies_to(required, {"action": "accept", "content": {"n": n}})
            return http_client.call(person.server, "lie", {}, replies=given, **how)

        first = asked(lambda: http_client.call(person.server, "lie", {}, **how))
        person.revoked = person.issued
        second = asked(lambda: reply(first, "a"))
        assert 2 == person.issued and person.has_newest
        assert ["a", "b"] == json.loads(reply(second, "b"))


def test_a_call_that_fails_for_want_of_a_visit_is_made_again_after_it(odd: Odd) -> None:
    """Servers of 2025-11-25 let people authorize them; a visit that is declined fails the call."""
    required = asked(lambda: odd.call("visit"))
    [page] = required.asked
    assert ("authorization", "https://example.com/login") == (page["kind"], page["url"])
    assert required.held is None

    with pytest.raises(McpFailed, match="did not agree to visit"):
        odd.call("visit", replies=replies_to(required, {"action": "decline"}))
    assert "visited" == odd.call("visit", replies=replies_to(required, {"action": "accept"}))
