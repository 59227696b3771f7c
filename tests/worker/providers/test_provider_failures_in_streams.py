"""Answers that fail in the middle of their stream, or that cannot be read."""

import copy
import json
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from arkloop.shared.events import types
from arkloop.shared.events.stored_events import encode
from arkloop.shared.times import EPOCH
from arkloop.worker.contract.messages import TextDelta, ThinkingDelta, ToolCall, TurnEnd
from arkloop.worker.contract.outcomes import ProviderError
from tests.worker.providers.failing_streams import TEXT, hello, in_stream
from tests.worker.providers.fake_vendor import (
    STREAM_HEAD,
    anthropic_stream,
    ask,
    delta,
    head,
    openai_stream,
    raw,
    refusal,
    vendor,
)

pytestmark = pytest.mark.parametrize("provider", ["openai", "anthropic"])


def calling(provider: str, arguments: str, name: str = "f") -> list[dict[str, Any]]:
    """Build the events of a response that thinks, speaks and calls a tool."""
    if provider == "openai":
        call = {"index": 0, "id": "a", "function": {"name": name, "arguments": arguments}}
        usage = {"prompt_tokens": 3, "completion_tokens": 2}
        details = {"prompt_tokens_details": {"cached_tokens": 1}}
        return [
            delta(content="Hi", reasoning="Hm"),
            delta(tool_calls=[call, {**call, "index": 1, "id": "b"}]),
            {**delta(finish="tool_calls"), "usage": {**usage, **details}},
        ]
    use = {"type": "tool_use", "id": "a", "name": name, "input": {}}
    pieces = [
        {"type": "thinking_delta", "thinking": "Hm"},
        {"type": "text_delta", "text": "Hi"},
        {"type": "input_json_delta", "partial_json": arguments},
    ]
    usage = {"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": 1}
    return [
        {"type": "message_start", "message": {"role": "assistant", "usage": usage}},
        {"type": "content_block_start", "index": 0, "content_block": {**use, "id": "b"}},
        {"type": "content_block_start", "index": 1, "content_block": use},
        *[{"type": "content_block_delta", "index": 1, "delta": piece} for piece in pieces],
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": usage},
    ]


def stream_of(provider: str, answer: list[dict[str, Any]]) -> bytes:
    # In ASCII, for lone surrogates.
    if provider == "openai":
        return openai_stream(*map(json.dumps, answer))
    told = [*answer, {"type": "message_stop"}]
    lines = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in told]
    return "".join(lines).encode()


def said(provider: str, *pieces: bytes) -> str:
    with vendor(raw(*pieces)) as fake:
        *chunks, end = ask(provider, fake.url)
    assert isinstance(end, TurnEnd) and "stop" == end.stop_reason
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextDelta))


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"type": "overloaded_error", "message": "Overloaded"}, "overloaded"),
        ({"type": "api_error", "message": "Oops"}, "overloaded"),
        ({"type": "server_error", "message": "Oops"}, "overloaded"),
        ({"type": "rate_limit_error", "message": "Slow"}, "rate_limited"),
        ({"type": "tokens", "code": "rate_limit_exceeded", "message": "Slow"}, "rate_limited"),
        ({"type": "timeout_error", "message": "Late"}, "timeout"),
        ({"type": "authentication_error", "message": "No"}, "auth"),
        ({"type": "permission_error", "message": "No"}, "auth"),
        ({"type": "billing_error", "message": "No"}, "auth"),
        ({"code": 429, "type": "insufficient_quota", "message": "No"}, "auth"),
        ({"type": "invalid_request_error", "message": "No"}, "invalid_request"),
        ({"type": "BadRequestError", "code": 400, "message": "No"}, "invalid_request"),
        ({"code": 429, "message": "Slow"}, "rate_limited"),
        ({"code": "502", "message": "Oops"}, "overloaded"),
        ({"message": "Oops"}, "overloaded"),
    ],
)
def test_an_error_inside_the_stream_has_its_code(
    provider: str, body: dict[str, Any], code: str
) -> None:
    """After text, under a status of 200; by the type, or the status that some put into it."""
    error = refusal(provider, in_stream(provider, body))

    assert f"provider.{code}" == error.code
    assert body["message"] in str(error)


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def _begin_and_reset(client: socket.socket) -> None:
    client.sendall(head("200 OK", "text/event-stream", "Content-Length: 1000") + b"data: ")
    _reset(client)


@pytest.mark.parametrize(
    "answer",
    [
        lambda client: None,  # the connection ends without an answer
        _reset,
        _begin_and_reset,
        lambda client: client.sendall(b"nonsense\r\n\r\n"),
        lambda client: client.sendall(STREAM_HEAD),  # a stream with nothing in it
        raw(b": only a comment\n\n"),
    ],
)
def test_a_broken_connection_may_be_tried_again(
    provider: str, answer: Callable[[socket.socket], None]
) -> None:
    """A broken connection may be retried, before the response and within it."""
    error = refusal(provider, answer)

    assert ("provider.connection", True) == (error.code, error.retryable)


@pytest.mark.parametrize("text", ["", "x" * 5 * 1024 * 1024])
def test_a_stream_that_breaks_is_no_failure_to_connect(provider: str, text: str) -> None:
    """The error of a stream that is cut, or has too long an event, says that this may be why."""
    answer = raw(hello(provider, text)) if text else _begin_and_reset

    assert "connection to the provider broke, or the response" in str(refusal(provider, answer))


def test_a_stream_that_ends_too_soon_is_not_taken_for_an_answer(provider: str) -> None:
    """A clean end without a reason for it: the SDKs say nothing about that."""
    error = refusal(provider, raw(hello(provider, ends=False)))

    assert ("provider.connection", True) == (error.code, error.retryable)


@pytest.mark.parametrize(
    "data",
    [
        b'{"choices": [',
        b"not json",
        b"5",
        b"[]",
        b'"text"',
        b'{"choices": 5, "type": "message_delta"}',
        b'{"choices": [5], "type": "content_block_start"}',
        b'{"choices": [{"delta": 5}], "type": "content_block_delta", "index": 0, "delta": 5}',
        b'{"choices": [{"delta": {"content": "\xff"}}], "type": "ping"}',
        b"[" * 100_000,
    ],
    ids=lambda data: str(data[:20]),
)
def test_a_chunk_that_cannot_be_read_is_malformed(provider: str, data: bytes) -> None:
    """Wherever it fails, it is never an internal error, and text is never lost silently."""
    event = b"event: message_start\n" if provider == "anthropic" else b""
    if b"\xff" in data and provider == "anthropic":
        data = b'{"type": "content_block_delta", "delta": {"type": "text_delta", "text": "\xff"}}'

    error = refusal(provider, raw(hello(provider, ends=False) + event + b"data: " + data + b"\n\n"))

    assert ("provider.malformed", True) == (error.code, error.retryable)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for name, inner in pairs:
        if name != "type":
            yield (*path, name)
        if isinstance(inner, dict | list):
            yield from _places(inner, (*path, name))


def test_a_value_of_another_type_is_malformed_or_nothing(provider: str) -> None:
    """A value of another type in any place is malformed or ignored, and what passes can be stored
    and sent on.
    """
    whole = calling(provider, '{"x": 1}')
    answers = []
    for *path, last in [place for place in _places(whole) if len(place) > 1]:
        for value in (5, True, [1], {"a": 1}, float("inf"), "x", "\ud83d", None):
            answers.append(copy.deepcopy(whole))
            inner: Any = answers[-1]
            for name in path:
                inner = inner[name]
            inner[last] = value
    came_through = 0
    with vendor(*[raw(stream_of(provider, answer)) for answer in answers]) as fake:
        for _ in answers:
            try:
                *pieces, end = ask(provider, fake.url)
            except ProviderError:
                continue
            came_through += 1
            assert isinstance(end, TurnEnd)
            texts = [p.text for p in pieces if isinstance(p, TextDelta | ThinkingDelta)]
            for call in end.tool_calls:
                texts += [call.id, call.name, json.dumps(call.arguments, allow_nan=False)]
            assert all(isinstance(text.encode(), bytes) for text in [*texts, end.stop_reason])
    assert came_through > 20


def test_the_key_is_not_told_of_bytes_that_are_no_answer(provider: str) -> None:
    """The HTTP client quotes what it cannot read."""
    start = head("200 OK", "text/event-stream", "Transfer-Encoding: chunked")
    begun = hello(provider, ends=False)
    first = f"{len(begun):x}\r\n".encode() + begun + b"\r\n"

    error = refusal(provider, lambda client: client.sendall(start + first + b"sk-test-key\r\n"))

    assert "provider.connection" == error.code
    assert "sk-" not in str(error)


def test_an_unreachable_provider_is_a_connection_error(provider: str) -> None:
    """A refused connection is a connection error."""
    with pytest.raises(ProviderError) as caught:
        ask(provider, "http://127.0.0.1:1/v1")

    assert "provider.connection" == caught.value.code
    assert "Connecting to the provider failed" in str(caught.value)


def test_letters_that_are_cut_apart_stay_whole(provider: str) -> None:
    """Each byte of the stream in a segment of its own."""
    stream = hello(provider)

    assert TEXT == said(provider, *(stream[i : i + 1] for i in range(len(stream))))


def test_lines_may_end_as_they_like(provider: str) -> None:
    """CRLF and CR instead of LF, also cut between the two."""
    stream = hello(provider)
    crlf = stream.replace(b"\n", b"\r\n")

    assert TEXT == said(provider, crlf)
    assert TEXT == said(provider, *crlf.partition(b"\r"))


def test_comments_and_unknown_fields_are_passed_over(provider: str) -> None:
    """Keep-alives of proxies between the events."""
    stream = hello(provider).replace(b"\n\n", b"\n\n: keep-alive\n\nid: 7\nretry: 10\nx: y\n\n")

    assert TEXT == said(provider, b": hello\n\n", stream)


def test_a_byte_order_mark_is_no_part_of_the_first_event(provider: str) -> None:
    """Some servers begin with it; whole, cut, and before a stream with nothing else in it."""
    mark, stream = b"\xef\xbb\xbf", hello(provider)
    if provider == "anthropic":
        stream = stream.split(b"\n\n", 2)[2]  # the events before have no text

    assert TEXT == said(provider, mark + stream)
    assert TEXT == said(provider, mark[:1], mark[1:2], mark[2:] + stream)
    assert "provider.connection" == refusal(provider, raw(mark)).code


def test_chunked_encoding_may_cut_anywhere(provider: str) -> None:
    """HTTP's own pieces have nothing to do with the events."""
    stream = hello(provider)

    def answer(client: socket.socket) -> None:
        client.sendall(head("200 OK", "text/event-stream", "Transfer-Encoding: chunked"))
        for i in range(0, len(stream), 7):
            part = stream[i : i + 7]
            client.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        client.sendall(b"0\r\n\r\n")

    with vendor(answer) as fake:
        assert TextDelta(TEXT) in ask(provider, fake.url)


def test_arguments_without_an_end_are_not_kept(provider: str) -> None:
    """A server that never stops writing a call's arguments does not fill the memory."""
    part = "x" * 1_000_000
    if provider == "openai":
        call = {"index": 0, "id": "a", "function": {"name": "f", "arguments": part}}
        stream = openai_stream(*[delta(tool_calls=[call])] * 6)
    else:
        use = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
        json_delta = {"type": "input_json_delta", "partial_json": part}
        begin = {"type": "content_block_start", "index": 0, "content_block": use}
        stream = anthropic_stream(
            begin, *[{"type": "content_block_delta", "index": 0, "delta": json_delta}] * 6
        )

    error = refusal(provider, raw(stream))

    assert "provider.malformed" == error.code


def test_arguments_that_are_no_json_are_text(provider: str) -> None:
    """Arguments that are not valid JSON stay text, for the tool's check to refuse and the model to
    read.
    """
    if provider == "openai":
        call = {"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x": '}}
        stream = openai_stream(delta(tool_calls=[call]), delta(finish="tool_calls"))
    else:
        use = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
        json_delta = {"type": "input_json_delta", "partial_json": '{"x": '}
        stream = anthropic_stream(
            {"type": "content_block_start", "index": 0, "content_block": use},
            {"type": "content_block_delta", "index": 0, "delta": json_delta},
            {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": None},
        )
    with vendor(raw(stream)) as fake:
        *_, end = ask(provider, fake.url)

    assert isinstance(end, TurnEnd)
    assert (ToolCall("a", "f", '{"x": '),) == end.tool_calls


@pytest.mark.parametrize(
    "arguments",
    ['{"x": ' * 600 + "1" + "}" * 600, '{"x": ' + "[" * 65 + "]" * 65 + "}", '{"x": NaN}'],
    ids=["deep", "just too deep", "NaN"],
)
def test_arguments_that_cannot_be_written_down_are_text(provider: str, arguments: str) -> None:
    """Arguments that cannot be encoded, such as those nested too deeply, are kept as text."""
    with vendor(raw(stream_of(provider, calling(provider, arguments)))) as fake:
        *_, end = ask(provider, fake.url)

    assert isinstance(end, TurnEnd)
    call = end.tool_calls[-1 if provider == "anthropic" else 0]
    assert arguments == call.arguments
    encode(1, types.ToolCallRequested("a", "f", call.arguments), EPOCH)


def test_what_no_database_takes_is_replaced_in_arguments(provider: str) -> None:
    """Lone surrogates and NUL; a number beyond all bounds becomes a text."""
    arguments = '{"a\\u0000": "\\ud83d!", "b": [1e999, 7]}'
    with vendor(raw(stream_of(provider, calling(provider, arguments)))) as fake:
        *_, end = ask(provider, fake.url)

    assert isinstance(end, TurnEnd)
    call = end.tool_calls[-1 if provider == "anthropic" else 0]
    assert {"a\ufffd": "\ufffd!", "b": ["inf", 7]} == call.arguments


def test_a_name_without_an_end_is_not_kept(provider: str) -> None:
    """Nothing has names of a megabyte; it would be written into an event."""
    error = refusal(provider, raw(stream_of(provider, calling(provider, "{}", "n" * 1_000_000))))

    assert "provider.malformed" == error.code
