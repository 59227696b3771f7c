"""The openai provider against a server of ours that answers whatever the test says."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx2
import pytest
import trustme

from shared.events import Usage
from shared.model_routes import Route
from worker import providers
from worker.messages import (
    AssistantMessage,
    Chunk,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    ToolMessage,
    TurnEnd,
    UserMessage,
)
from worker.outcomes import CancelRequested, ProviderError
from worker.providers import abortable_http
from worker.stop_signal import StopSignal
from worker.tools import load

Answer = Callable[[socket.socket], None]


class FakeServer:
    """Answers each request with the next of `answers`; keeps the requests' bodies."""

    def __init__(self, *answers: Answer, tls: ssl.SSLContext | None = None) -> None:
        self.bodies: list[dict[str, Any]] = []
        self._answers = iter(answers)
        self._listener = socket.create_server(("127.0.0.1", 0))
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._tls = tls
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        for answer in self._answers:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
            with client:
                self.bodies.append(_read_body(client))
                answer(client)


def _read_body(client: socket.socket) -> dict[str, Any]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += client.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += client.recv(65536)
    return dict(json.loads(body))


def sse(*chunks: Any, done: bool = True) -> Answer:
    """A whole stream; text chunks are sent as they are."""

    def answer(client: socket.socket) -> None:
        lines = [c if isinstance(c, str) else json.dumps(c) for c in chunks]
        text = "".join(f"data: {line}\n\n" for line in [*lines, *(["[DONE]"] if done else [])])
        client.sendall(_head("200 OK", "text/event-stream") + text.encode())

    return answer


def status(code: str, *headers: str, message: str = "no") -> Answer:
    def answer(client: socket.socket) -> None:
        body = json.dumps({"error": {"message": message, "type": "t", "code": None}}).encode()
        head = _head(code, "application/json", f"Content-Length: {len(body)}", *headers)
        client.sendall(head + body)

    return answer


def _head(code: str, kind: str, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {code}", f"Content-Type: {kind}", "Connection: close", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": fields, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"} | {
        "choices": [choice]
    }


USAGE = delta() | {
    "choices": [],
    "usage": {
        "prompt_tokens": 10,
        "completion_tokens": 3,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 4},
    },
}
REQUEST = ModelRequest(model="m", system_prompt="Be brief.", messages=[UserMessage("Hi")])


@contextmanager
def server(*answers: Answer, tls: ssl.SSLContext | None = None) -> Iterator[FakeServer]:
    started = FakeServer(*answers, tls=tls)
    try:
        yield started
    finally:
        started.close()


def ask(url: str, request: ModelRequest = REQUEST, stop: StopSignal | None = None) -> list[Chunk]:
    route = Route(id="r", provider="openai", model="m", base_url=url, api_key="k")
    provider = providers.load(route, faults=False)
    try:
        return list(provider.stream(request, stop or StopSignal()))
    finally:
        provider.close()


def refused(*answers: Answer) -> ProviderError:
    with server(*answers) as fake, pytest.raises(ProviderError) as caught:
        ask(fake.url)
    return caught.value


def test_text_thinking_and_usage_are_streamed() -> None:
    """Pieces come in order; cached tokens are part of the input."""
    chunks = [
        delta(reasoning_content="hm"),
        delta(content="Hel"),
        delta(content="lo"),
        delta(finish="stop"),
        USAGE,
    ]
    with server(sse(*chunks)) as fake:
        answered = ask(fake.url)

    assert [
        ThinkingDelta("hm"),
        TextDelta("Hel"),
        TextDelta("lo"),
        TurnEnd("stop", (), Usage(input_tokens=10, output_tokens=3, cache_read_tokens=4)),
    ] == answered


def test_the_whole_conversation_and_the_tools_are_sent() -> None:
    """System prompt first, calls with their results, schemas from the tools' signatures."""
    call = ToolCall("call_1", "calculator", {"expression": "1+1"})
    request = ModelRequest(
        model="m",
        system_prompt="Be brief.",
        messages=[
            UserMessage("1+1?"),
            AssistantMessage("", (call,)),
            ToolMessage("call_1", "calculator", "2"),
        ],
        tools=[load(["calculator"])["calculator"].spec],
        max_output_tokens=7,
    )
    with server(sse(delta(content="2", finish="stop"))) as fake:
        ask(fake.url, request)
        [body] = fake.bodies

    assert [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "calculator", "arguments": '{"expression": "1+1"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
    ] == body["messages"]
    assert ["expression"] == body["tools"][0]["function"]["parameters"]["required"]
    assert (7, True, {"include_usage": True}) == (
        body["max_tokens"],
        body["stream"],
        body["stream_options"],
    )


def test_parallel_tool_calls_are_put_together_from_their_pieces() -> None:
    """Arguments that are no JSON are passed on as the text they were."""

    def piece(index: int, **fields: Any) -> dict[str, Any]:
        return delta(tool_calls=[{"index": index, **fields}])

    chunks = [
        piece(0, id="a", type="function", function={"name": "calculator", "arguments": '{"exp'}),
        piece(1, id="b", type="function", function={"name": "current_time", "arguments": ""}),
        piece(0, function={"arguments": 'ression": "2"}'}),
        piece(2, id="c", type="function", function={"name": "x", "arguments": "{broken"}),
        delta(finish="tool_calls"),
    ]
    with server(sse(*chunks)) as fake:
        [end] = ask(fake.url)

    assert isinstance(end, TurnEnd)
    assert (
        ToolCall("a", "calculator", {"expression": "2"}),
        ToolCall("b", "current_time", {}),
        ToolCall("c", "x", "{broken"),
    ) == end.tool_calls
    assert end.usage is None


@pytest.mark.parametrize(
    ("answer", "code", "retryable", "retry_after"),
    [
        (status("429 Too Many Requests", "Retry-After: 3"), "rate_limited", True, 3.0),
        (status("500 Internal Server Error"), "overloaded", True, None),
        (status("529 Overloaded", "Retry-After: 1.5"), "overloaded", True, 1.5),
        (status("401 Unauthorized"), "auth", False, None),
        (status("403 Forbidden"), "auth", False, None),
        (status("400 Bad Request"), "invalid_request", False, None),
        (status("404 Not Found"), "invalid_request", False, None),
        (status("429 Too Many Requests", "Retry-After: soon"), "rate_limited", True, None),
    ],
)
def test_each_refusal_has_its_code(
    answer: Answer, code: str, retryable: bool, retry_after: float | None
) -> None:
    """The SDK itself retries nothing: one request, one error."""
    error = refused(answer)

    assert (f"provider.{code}", retryable, retry_after) == (
        error.code,
        error.retryable,
        error.retry_after,
    )


def test_a_long_complaint_of_the_provider_is_cut() -> None:
    """What ends in an event stays readable."""
    error = refused(status("400 Bad Request", message="x" * 10_000))

    assert len(str(error)) < 600


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (sse(delta(content="Hel"), done=False), "connection"),  # a clean end without a finish
        (sse(delta(content="Hel"), '{"choices": [', done=False), "malformed"),
        (lambda client: client.sendall(b"nonsense\r\n\r\n"), "connection"),
        (lambda client: None, "connection"),
    ],
)
def test_a_broken_stream_is_a_retryable_error(answer: Answer, code: str) -> None:
    """Cut, truncated and unreadable streams are told apart and may be tried again."""
    error = refused(answer)

    assert (f"provider.{code}", True) == (error.code, error.retryable)


def test_an_unreachable_provider_is_a_connection_error() -> None:
    """Nobody listens there."""
    with pytest.raises(ProviderError) as caught:
        ask("http://127.0.0.1:1/v1")

    assert "provider.connection" == caught.value.code


@pytest.fixture
def tls(monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's certificate that the providers' clients trust."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    monkeypatch.setattr(abortable_http, "_ssl_context", lambda: trusting)
    return context


@pytest.mark.parametrize("over_tls", [False, True])
@pytest.mark.parametrize("before", [b"", _head("200 OK", "text/event-stream")])
def test_a_silent_provider_is_cut_off_at_once(
    before: bytes, over_tls: bool, tls: ssl.SSLContext
) -> None:
    """A stop signal ends the call before the first byte and between two of them."""
    asked = threading.Event()

    def fall_silent(client: socket.socket) -> None:
        client.sendall(before)
        asked.set()
        with suppress(OSError):
            client.recv(1)  # returns when the other side is gone

    stop = StopSignal()
    stopped_at: list[float] = []

    def cancel() -> None:
        asked.wait(10)
        stopped_at.append(time.monotonic())
        stop.set(CancelRequested())

    with server(fall_silent, tls=tls if over_tls else None) as fake:
        threading.Thread(target=cancel).start()
        with pytest.raises(CancelRequested):
            ask(fake.url, stop=stop)

    assert time.monotonic() - stopped_at[0] < 2


def test_a_connection_that_comes_after_the_cut_is_cut_too() -> None:
    """A stop that arrives while the provider's address is looked up is not forgotten."""
    with server(lambda client: None) as fake:
        client = abortable_http.AbortableClient()
        client.abort()

        with pytest.raises(httpx2.TransportError):
            client.post(f"{fake.url}/x", json={})
        client.close()


def test_an_estimate_says_that_it_is_one() -> None:
    """For calls whose usage nobody reported."""
    route = Route(id="r", provider="openai", model="m", base_url="http://127.0.0.1:1")
    provider = providers.load(route, faults=False)

    usage = provider.estimate(REQUEST, "12345678")

    assert Usage(input_tokens=3, output_tokens=2, source="estimated") == usage
    provider.close()
