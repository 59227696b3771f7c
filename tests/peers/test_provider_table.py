"""The table provider x behaviour, each cell against a server that we did not write.

`docs/reference/providers.md` shows it. aimock plays whole conversations, llmock breaks them
and judges what we make of that. The scripted provider is its own server.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from llmock.pytest_plugin import LLMock
from llmock.scenarios import Reply
from llmock.scenarios import ToolCall as Call

from arkloop.shared.events.usage import Usage
from arkloop.worker import providers
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Message,
    ModelRequest,
    TextDelta,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from arkloop.worker.contract.outcomes import ProviderError
from tests.peers.calls import TOOLS, Server, end_of, text_of, thinking_of

#: With what llmock calls each of them.
SDKS = {"openai": "openai", "responses": "openai", "anthropic": "anthropic"}
CALCULATE = ToolCall("", "calculator", {"expression": "6*7"})
LOOK = ToolCall("", "current_time", {})
GREETING = "Grüße aus Köln, 世界! 🚀 And a little more text."


@pytest.fixture(params=list(SDKS))
def at_aimock(request: pytest.FixtureRequest, aimock: str) -> Server:
    return server_of(request.param, aimock if request.param == "anthropic" else f"{aimock}/v1")


@pytest.fixture(params=list(SDKS))
def at_llmock(request: pytest.FixtureRequest, llmock: LLMock) -> Iterator[Server]:
    """Its verdict on how we took what it did is part of every test."""
    yield server_of(request.param, llmock.base_url(SDKS[request.param]))
    llmock.assert_resilient(strict=True)


def server_of(sdk: str, url: str) -> Server:
    """Return the SDK's server; `responses` is OpenAI's SDK with its newer API."""
    return Server(SDKS[sdk], url, api="responses" if sdk == "responses" else None)


SCRIPTED = Server("scripted", None)


def script(*steps: dict[str, Any]) -> str:
    return json.dumps({"script": steps})


def without_ids(calls: tuple[ToolCall, ...]) -> list[ToolCall]:
    assert len({call.id for call in calls if call.id}) == len(calls), "each has an id of its own"
    return [ToolCall("", call.name, call.arguments) for call in calls]


def second_step(first: str, said: str, calls: tuple[ToolCall, ...]) -> list[Message]:
    """Build the conversation with a result for each call."""
    results = [ToolMessage(call.id, call.name, f"result {call.name}") for call in calls]
    return [UserMessage(first), AssistantMessage(said, calls), *results]


# ---- streaming, thinking, usage ------------------------------------------------------


@pytest.mark.peers
def test_streaming_aimock(at_aimock: Server) -> None:
    """Text arrives piece by piece, every letter whole."""
    chunks = at_aimock.one_try(at_aimock.request("greet"))

    assert GREETING == text_of(chunks)
    assert len([chunk for chunk in chunks if isinstance(chunk, TextDelta)]) >= 3
    assert ("stop", ()) == (end_of(chunks).stop_reason, end_of(chunks).tool_calls)


def test_streaming_llmock(at_llmock: Server, llmock: LLMock) -> None:
    """The whole text, and the request that a vendor expects."""
    llmock.reply(GREETING)

    chunks = at_llmock.one_try(at_llmock.request("Hi"))

    assert (GREETING, "stop") == (text_of(chunks), end_of(chunks).stop_reason)
    assert (200, True) == (llmock.last_request.status, llmock.last_request.completed)


def test_streaming_scripted() -> None:
    """Text is streamed word by word."""
    chunks = SCRIPTED.one_try(SCRIPTED.request(script({"say": GREETING})))

    assert (GREETING, "stop") == (text_of(chunks), end_of(chunks).stop_reason)


@pytest.mark.peers
def test_thinking_aimock(at_aimock: Server) -> None:
    """Apart from the text; a signature of it is passed over."""
    chunks = at_aimock.one_try(at_aimock.request("ponder"))

    assert ("First I think a bit.", "Then I speak.") == (thinking_of(chunks), text_of(chunks))


def test_thinking_scripted() -> None:
    """Reasoning is streamed separately from the text."""
    chunks = SCRIPTED.one_try(SCRIPTED.request(script({"think": "Hm."}, {"say": "Yes."})))

    assert ("Hm.", "Yes.") == (thinking_of(chunks), text_of(chunks))


@pytest.mark.peers
def test_usage_aimock(at_aimock: Server) -> None:
    """Usage is what the server reports."""
    usage = end_of(at_aimock.one_try(at_aimock.request("greet"))).usage

    assert Usage(input_tokens=21, output_tokens=9) == usage


@pytest.mark.peers
def test_usage_in_detail_aimock(aimock: str) -> None:
    """Cached and reasoning tokens are read in the form of OpenRouter."""
    server = Server("openai", f"{aimock}/api/v1", "openai/gpt-5.4")

    usage = end_of(server.one_try(server.request("greet"))).usage

    expected = Usage(input_tokens=21, output_tokens=9, cache_read_tokens=8, reasoning_tokens=4)
    assert expected == usage


@pytest.mark.peers
def test_usage_that_is_zero_is_no_usage_aimock(aimock: str) -> None:
    """A server that fills in zeros has not counted: the call is estimated."""
    server = Server("anthropic", aimock)

    reply, run = server.call(server.request("ponder"))

    assert "estimated" == reply.usage.source == run.usage.source
    assert reply.usage.input_tokens > 0 < reply.usage.output_tokens


def test_usage_llmock(at_llmock: Server, llmock: LLMock) -> None:
    """Reported, and never more than the worst case that is reserved."""
    llmock.reply("Six times seven is forty-two.")
    request = at_llmock.request("What is six times seven?", tools=True)

    reply, _ = at_llmock.call(request)

    assert_within_worst_case(at_llmock, request, reply.usage)
    assert "reported" == reply.usage.source


def test_usage_scripted() -> None:
    """Usage is what the script reports."""
    usage = {"input_tokens": 9, "output_tokens": 5, "cache_read_tokens": 3}
    usage |= {"cache_write_tokens": 2, "reasoning_tokens": 1}
    request = SCRIPTED.request(script({"say": "a"}, {"usage": usage}))

    assert Usage(**usage) == end_of(SCRIPTED.one_try(request)).usage


def assert_within_worst_case(server: Server, request: ModelRequest, usage: Usage) -> None:
    provider = providers.load(server.route, faults=False)
    worst = provider.worst_case(request)
    provider.close()
    assert 0 < usage.input_tokens <= worst.input_tokens
    assert 0 < usage.output_tokens <= worst.output_tokens


# ---- tools ---------------------------------------------------------------------------


@pytest.mark.peers
@pytest.mark.parametrize(
    ("asked", "said", "called"),
    [("one tool", "", [CALCULATE]), ("two tools", "Let me see.", [CALCULATE, LOOK])],
    ids=["one", "parallel"],
)
def test_tools_aimock(at_aimock: Server, asked: str, said: str, called: list[ToolCall]) -> None:
    """Called with their arguments, all of a turn together; the results are understood."""
    first = at_aimock.one_try(at_aimock.request(asked, tools=True))
    calls = end_of(first).tool_calls
    assert (said, "tool_calls", called) == (
        text_of(first),
        end_of(first).stop_reason,
        without_ids(calls),
    )

    conversation = second_step(asked, said, calls)
    second = at_aimock.one_try(at_aimock.request(*conversation, tools=True, turn=1))

    assert ("It is 42.", "stop") == (text_of(second), end_of(second).stop_reason)


@pytest.mark.parametrize("called", [[CALCULATE], [CALCULATE, LOOK]], ids=["one", "parallel"])
def test_tools_llmock(at_llmock: Server, llmock: LLMock, called: list[ToolCall]) -> None:
    """Called with their arguments, all of a turn together; the results are understood."""
    calls_of_server = tuple(Call(call.name, call.arguments) for call in called)
    llmock.add(Reply(text="Let me see.", tool_calls=calls_of_server), Reply(text="It is 42."))

    reply, _ = at_llmock.call(at_llmock.request("tool", tools=True))
    calls = reply.message.tool_calls
    assert ("tool_calls", called) == (reply.end.stop_reason, without_ids(calls))
    conversation = second_step("tool", reply.message.content, calls)
    second, _ = at_llmock.call(at_llmock.request(*conversation, tools=True, turn=1))

    assert ("It is 42.", "stop") == (second.message.content, second.end.stop_reason)


def test_tools_whose_arguments_are_no_json_llmock(at_llmock: Server, llmock: LLMock) -> None:
    """They come as the text they are, for the tool's check to refuse; we can tell it the model."""
    llmock.break_tool_call("malformed_arguments").call_tool("calculator", {"expression": "6*7"})
    llmock.reply("I see.")

    reply, _ = at_llmock.call(at_llmock.request("tool", tools=True))
    [call] = reply.message.tool_calls
    assert ("calculator", str) == (call.name, type(call.arguments))
    conversation = second_step("tool", reply.message.content, (call,))
    second, _ = at_llmock.call(at_llmock.request(*conversation, tools=True, turn=1))

    assert "I see." == second.message.content


def test_tools_that_nobody_offered_llmock(at_llmock: Server, llmock: LLMock) -> None:
    """The name that the model made up comes as it is."""
    llmock.break_tool_call("unknown_tool").call_tool("calculator", {"expression": "6*7"})

    reply, _ = at_llmock.call(at_llmock.request("tool", tools=True))

    assert not {call.name for call in reply.message.tool_calls} & {tool.name for tool in TOOLS}


@pytest.mark.parametrize("called", [[CALCULATE], [CALCULATE, LOOK]], ids=["one", "parallel"])
def test_tools_scripted(called: list[ToolCall]) -> None:
    """Called with their arguments, then the next turn of the script."""
    tools = [{"tool": call.name, "args": call.arguments} for call in called]
    text = script({"tools": tools}, {"say": "It is 42."})

    calls = end_of(SCRIPTED.one_try(SCRIPTED.request(text))).tool_calls
    second = SCRIPTED.one_try(SCRIPTED.request(*second_step(text, "", calls), turn=1))

    assert (called, "It is 42.") == (without_ids(calls), text_of(second))


# ---- failures ------------------------------------------------------------------------


def refused(server: Server, asked: str) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        server.one_try(server.request(asked))
    return caught.value


@pytest.mark.peers
@pytest.mark.parametrize(
    ("asked", "code", "retry_after"),
    [
        ("limited", "rate_limited", 2.0),
        ("down", "overloaded", None),
        ("cut", "connection", None),
        # A 200 with a page of another type instead of a stream.
        ("garbled", "malformed", None),
    ],
)
def test_failures_aimock(
    at_aimock: Server, asked: str, code: str, retry_after: float | None
) -> None:
    """429, 5xx, a reset in the stream, and an answer that is none: each may be tried again."""
    error = refused(at_aimock, asked)

    assert (f"provider.{code}", True, retry_after) == (
        error.code,
        error.retryable,
        error.retry_after,
    )


def test_429_llmock(at_llmock: Server, llmock: LLMock) -> None:
    """It is tried again when the server said, not before."""
    llmock.rate_limit(times=2, retry_after=0.2).reply("Well.")

    reply, run = at_llmock.call(at_llmock.request("Hi"))

    assert ("Well.", [0.2, 0.2]) == (reply.message.content, run.paused)


@pytest.mark.parametrize("status", [500, 503, 529])
def test_5xx_llmock(at_llmock: Server, llmock: LLMock, status: int) -> None:
    """Tried again, after our own pause."""
    llmock.fail(status).reply("Well.")

    reply, run = at_llmock.call(at_llmock.request("Hi"))

    assert ("Well.", 1) == (reply.message.content, len(run.paused))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_4xx_llmock(at_llmock: Server, llmock: LLMock, status: int) -> None:
    """One request is made, and never another one."""
    llmock.fail(status, times=None)

    with pytest.raises(ProviderError) as caught:
        at_llmock.call(at_llmock.request("Hi"))

    expected = "provider.auth" if status in (401, 403) else "provider.invalid_request"
    assert (expected, 1) == (caught.value.code, len(llmock.requests))


@pytest.mark.parametrize("fault", ["disconnect", "truncate", "corrupt"])
def test_broken_streams_llmock(at_llmock: Server, llmock: LLMock, fault: str) -> None:
    """Cut, ended early without a word, garbled: the text is void, the call is made again."""
    getattr(llmock, fault)(after_chunks=6)
    # It judges by whether we stopped reading, which it cannot see once it has sent all.
    llmock.pace(20).reply("All is well. " * 200).reply("All is well that ends well.")

    reply, run = at_llmock.call(at_llmock.request("Hi"))

    assert "All is well that ends well." == reply.message.content
    expected = "provider.malformed" if fault == "corrupt" else "provider.connection"
    assert [expected] == run.voided
    assert run.totals.usage.source == "estimated", "the broken try was counted"


def test_stall_llmock(at_llmock: Server, llmock: LLMock) -> None:
    """A stream that falls silent is given up and made again."""
    impatient = replace(at_llmock, idle_seconds=5)
    llmock.stall(after_chunks=6, seconds=15)
    llmock.reply("All is well that ends well, as they say.", times=2)

    reply, run = impatient.call(impatient.request("Hi"))

    assert "All is well that ends well, as they say." == reply.message.content
    assert ["provider.timeout"] == run.voided


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("rate_limited", "rate_limited"),
        ("overloaded", "overloaded"),
        ("timeout", "timeout"),
        ("disconnect", "connection"),
    ],
)
def test_failures_scripted(name: str, code: str) -> None:
    """429, 5xx, a stall and a cut, as the script requires them."""
    error = refused(SCRIPTED, script({"say": "a"}, {"error": name}))

    assert (f"provider.{code}", True) == (error.code, error.retryable)
