"""The reaction of both SDK providers to refusals, broken streams and odd bytes."""

import copy
import email.utils
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from arkloop.shared.events import types
from arkloop.shared.events.stored_events import encode
from arkloop.shared.times import EPOCH
from arkloop.worker.contract.messages import TextDelta, ThinkingDelta, ToolCall, TurnEnd
from arkloop.worker.contract.outcomes import ProviderError, TooLarge
from tests.worker.providers.fake_vendor import (
    STREAM_HEAD,
    Answer,
    anthropic_stream,
    ask,
    delta,
    head,
    openai_stream,
    raw,
    refusal,
    status,
    vendor,
)

pytestmark = pytest.mark.parametrize("provider", ["openai", "anthropic"])

TEXT = "Grüße, 世界! 🚀"


def hello(provider: str, text: str = TEXT, *, ends: bool = True) -> bytes:
    """Build a stream with the text; without an end it stops in the middle, cleanly."""
    if provider == "openai":
        chunks = [delta(content=text), *[delta(finish="stop")] * ends]
        return openai_stream(*chunks, done=ends)
    usage = {"input_tokens": 1, "output_tokens": 1}
    message = {"id": "i", "type": "message", "role": "assistant", "content": [], "usage": usage}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text"}}
    piece = {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "text_delta", "text": text},
    }
    finish = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": None}
    start = {"type": "message_start", "message": message}
    return anthropic_stream(start, block, piece, *[finish] * ends, stop=ends)


def in_stream(provider: str, error: Any) -> Answer:
    """Build a stream that reports an error after its first words."""
    body = json.dumps({"type": "error", "error": error})
    event = "event: error\n" if provider == "anthropic" else ""
    return raw(hello(provider, ends=False), f"{event}data: {body}\n\n".encode())


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


# ---- refusals ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "code", "retryable", "retry_after"),
    [
        (status("429 Too Many Requests", "Retry-After: 3"), "rate_limited", True, 3.0),
        (status("429 Too Many Requests", "retry-after-ms: 250"), "rate_limited", True, 0.25),
        (
            status("429 Too Many Requests", "retry-after-ms: x", "Retry-After: 2"),
            "rate_limited",
            True,
            2.0,
        ),
        (status("429 Too Many Requests", "Retry-After: soon"), "rate_limited", True, None),
        (status("429 Too Many Requests", "Retry-After: nan"), "rate_limited", True, None),
        (status("429 Too Many Requests", "Retry-After: -1"), "rate_limited", True, None),
        (status("500 Internal Server Error"), "overloaded", True, None),
        (status("503 Service Unavailable"), "overloaded", True, None),
        (status("529 Overloaded", "Retry-After: 1.5"), "overloaded", True, 1.5),
        (status("408 Request Timeout"), "timeout", True, None),
        (status("409 Conflict"), "overloaded", True, None),
        (status("401 Unauthorized"), "auth", False, None),
        (status("402 Payment Required"), "auth", False, None),
        (status("403 Forbidden"), "auth", False, None),
        (status("400 Bad Request"), "invalid_request", False, None),
        (status("404 Not Found"), "invalid_request", False, None),
        (status("413 Content Too Large"), "invalid_request", False, None),
        (status("422 Unprocessable Content"), "invalid_request", False, None),
    ],
)
def test_each_refusal_has_its_code(
    provider: str, answer: Answer, code: str, retryable: bool, retry_after: float | None
) -> None:
    """The SDK itself retries nothing: one request, one error."""
    error = refusal(provider, answer)

    assert (f"provider.{code}", retryable, retry_after) == (
        error.code,
        error.retryable,
        error.retry_after,
    )


@pytest.mark.parametrize(
    ("kind", "error_code"),
    [
        ("insufficient_quota", "insufficient_quota"),
        ("requests", "billing_hard_limit_reached"),
        ("exceeded_current_quota_error", None),
        ("billing_error", None),
        ("x", "Insufficient_Balance"),
    ],
)
def test_an_empty_account_is_not_waited_for(
    provider: str, kind: str, error_code: str | None
) -> None:
    """An account without balance is treated as a 402, not as a rate limit: the next provider is
    tried.
    """
    answer = status("429 Too Many Requests", "Retry-After: 3", kind=kind, error_code=error_code)

    error = refusal(provider, answer)

    assert ("provider.auth", False, True) == (error.code, error.retryable, error.is_of_route)


@pytest.mark.parametrize(
    ("code", "message", "error_code"),
    [
        (
            400,
            "Your credit balance is too low to access the Anthropic API. Please go to Plans",
            None,
        ),
        (400, "You have reached your specified API usage limits. You will regain access on", None),
        (400, "Access denied, please make sure your account is in good standing.", "Arrearage"),
        (402, "Insufficient Balance", "invalid_request_error"),
        (402, "Insufficient credits. This account never purchased credits.", None),
        (403, "Your team has either used all available credits or reached its monthly", None),
        (429, "Your team has either used all available credits or reached its monthly", None),
        (429, "Your account is suspended due to insufficient balance, please recharge", None),
        (
            412,
            "Account acme is suspended, possibly due to reaching the monthly spending limit or"
            " failure to pay past invoices. Please go to https://fireworks.ai/account/billing",
            "PRECONDITION_FAILED",
        ),
        (429, "Your prepayment credits are depleted. Please go to AI Studio at", None),
        (400, "Blocked API access", "blocked_api_access"),
        (429, "余额不足或无可用资源包,请充值。", "1113"),
    ],
)
def test_an_empty_account_is_recognised_in_the_vendors_words(
    provider: str, code: int, message: str, error_code: str | None
) -> None:
    """The next route takes over, whatever the status is, also in the middle of a stream."""
    answer = status(
        f"{code} X", message=message, kind="invalid_request_error", error_code=error_code
    )
    told = {"type": "invalid_request_error", "code": error_code, "message": message}

    for error in (refusal(provider, answer), refusal(provider, in_stream(provider, told))):
        assert ("provider.auth", False, True) == (error.code, error.retryable, error.is_of_route)


@pytest.mark.parametrize(
    ("headers", "is_shared", "retry_after", "idle_tokens"),
    [
        (["Retry-After: 7"], False, 7.0, None),
        (["x-ratelimit-remaining-tokens: 0", "Retry-After: 7"], True, 7.0, None),
        (["x-ratelimit-remaining-tokens: 5000", "x-ratelimit-reset-tokens: 6s"], False, None, None),
        (["x-ratelimit-remaining-requests: 0", "x-ratelimit-reset-requests: 6s"], True, 6.0, None),
        (["x-ratelimit-limit-tokens: 90", "x-ratelimit-remaining-tokens: 90"], False, None, 90),
    ],
)
def test_a_429_concerns_everybody_only_if_its_headers_say_so(
    provider: str,
    headers: list[str],
    is_shared: bool,
    retry_after: float | None,
    idle_tokens: int | None,
) -> None:
    """The account's limit must be exhausted, with a time at which it is renewed."""
    error = refusal(provider, status("429 Too Many Requests", *headers))

    assert "provider.rate_limited" == error.code
    assert (is_shared, retry_after, idle_tokens) == (
        error.is_shared,
        error.retry_after,
        error.idle_tokens,
    )


@pytest.mark.parametrize("code", ["429 Too Many Requests", "413 Content Too Large"])
def test_a_request_beyond_the_tokens_per_minute_is_refused_for_good(
    provider: str, code: str
) -> None:
    """It is not waited for, whatever its headers say; another route may take it."""
    why = "Request too large for m on tokens per min (TPM): Limit 30000, Requested 35064."
    headers = ("Retry-After: 30", "x-ratelimit-remaining-tokens: 0")

    error = refusal(provider, status(code, *headers, message=why))

    assert ("provider.invalid_request", True) == (error.code, error.is_of_route)
    too_large = TooLarge(limit_tokens=30000, sent_tokens=35064, is_per_minute=True)
    assert too_large == error.too_large


@pytest.mark.parametrize("is_in_stream", [False, True])
def test_a_conversation_that_is_too_long_is_recognised(provider: str, is_in_stream: bool) -> None:
    """A too long conversation is recognised by status or in the stream, and the same request is not
    repeated.
    """
    why = "prompt is too long: 202095 tokens > 200000 maximum"
    error = {"type": "invalid_request_error", "message": why}
    answer = in_stream(provider, error) if is_in_stream else status("400 Bad Request", message=why)

    failed = refusal(provider, answer)

    assert ("provider.invalid_request", False) == (failed.code, failed.retryable)
    assert TooLarge(limit_tokens=200000, sent_tokens=202095) == failed.too_large


@pytest.mark.parametrize(
    ("answer", "is_of_route"),
    [
        (status("404 Not Found"), True),
        (status("410 Gone"), True),
        (status("400 Bad Request"), False),
        (status("422 Unprocessable Content"), False),
    ],
)
def test_a_model_that_is_not_there_is_the_routes_fault(
    provider: str, answer: Answer, is_of_route: bool
) -> None:
    """Another route may have it; what is wrong with the request is wrong everywhere."""
    error = refusal(provider, answer)

    assert ("provider.invalid_request", False) == (error.code, error.retryable)
    assert is_of_route == error.is_of_route


def test_a_model_may_be_missed_in_the_stream(provider: str) -> None:
    """Proxies begin the answer before they have asked."""
    for told, is_of_route in (
        ({"type": "not_found_error", "message": "no"}, True),
        ({"code": 404, "message": "no"}, True),
        ({"type": "invalid_request_error", "message": "no"}, False),
    ):
        error = refusal(provider, in_stream(provider, told))
        assert ("provider.invalid_request", is_of_route) == (error.code, error.is_of_route)


def test_a_provider_may_name_the_time_to_come_back(provider: str) -> None:
    """`Retry-After` as a date; one that is past is no wait."""
    for seconds, least, most in ((60, 50, 61), (-60, 0, 0)):
        date = email.utils.formatdate(time.time() + seconds, usegmt=True)
        error = refusal(provider, status("429 Too Many Requests", f"Retry-After: {date}"))
        assert error.retry_after is not None and least <= error.retry_after <= most


def test_a_redirect_is_not_followed(provider: str) -> None:
    """A redirect is not followed, not even on the same server."""
    with vendor(status("307 Temporary Redirect", "Location: /elsewhere"), raw(b"")) as fake:
        with pytest.raises(ProviderError) as caught:
            ask(provider, fake.url)
        assert 1 == len(fake.bodies)

    assert ("provider.invalid_request", False) == (caught.value.code, caught.value.retryable)


def test_a_long_complaint_of_the_provider_is_cut(provider: str) -> None:
    """A long message of a provider is cut, and stays readable in an event."""
    error = refusal(provider, status("400 Bad Request", message="x" * 10_000))

    assert len(str(error)) < 600


def test_the_key_is_not_in_what_is_told(provider: str) -> None:
    """Errors do not contain the key, although some servers repeat it."""
    error = refusal(provider, status("401 Unauthorized", message="Wrong key: sk-test-key"))

    assert "Wrong key: [key]" in str(error)
    assert "sk-test-key" not in str(error)


def test_a_complaint_can_be_stored(provider: str) -> None:
    """NUL and lone surrogates are nothing for Postgres, which stores many endings at once."""
    told = {"type": "api_error", "message": "a\x00b\ud83d"}

    error = refusal(provider, in_stream(provider, told)).as_error()

    assert "\0" not in error.message
    assert error.message.encode()


# ---- errors in the stream ------------------------------------------------------------


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


# ---- broken streams ------------------------------------------------------------------


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


# ---- odd, but right ------------------------------------------------------------------


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
