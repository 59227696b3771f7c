"""The common parts of both SDKs' clients."""

import json
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arkloop.worker import providers
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Message,
    ModelRequest,
    TextDelta,
    UserMessage,
)
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers.openai_provider import OpenAIProvider
from arkloop.worker.providers.sdk_client import json_bytes
from tests.closed_port import closed_port
from tests.worker.providers.anthropic_answers import finish, start, text
from tests.worker.providers.fake_vendor import (
    anthropic_stream,
    delta,
    openai_stream,
    raw,
    route_to,
    vendor,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(value=JSON)
def test_json_is_encoded_as_the_sdks_do(value: Any) -> None:
    """Byte for byte, so that vendors' caches of prompts keep working."""
    expected = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    assert expected.encode() == json_bytes(value)


OF_EACH_API = pytest.mark.parametrize(
    ("provider", "fields"),
    [("openai", {"api": "chat"}), ("openai", {"api": "responses"}), ("anthropic", {})],
)


def test_a_provider_of_an_sdk_needs_an_address() -> None:
    """A new one has no vendor's address; without one the SDK would call its own vendor."""
    with pytest.raises(ProviderError, match="'acme' needs a `base_url`") as refused:
        OpenAIProvider(route_to("acme", None))

    assert ("provider.invalid_request", False) == (refused.value.code, refused.value.retryable)


@OF_EACH_API
def test_an_emoji_does_not_multiply_the_memory_of_a_request(
    provider: str, fields: dict[str, Any]
) -> None:
    """A long conversation is encoded without a string of all of it, of four bytes a character."""
    messages: list[Message] = [
        (AssistantMessage if number % 2 else UserMessage)("word " * 2000 + str(number))
        for number in range(801)
    ]
    messages[0] = UserMessage("\N{GRINNING FACE}")
    size = sum(len(message.content) for message in messages)
    _send_to_nobody(provider, fields, messages[:1])  # loads the SDK
    tracemalloc.start()
    _send_to_nobody(provider, fields, messages)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 4 * size


@OF_EACH_API
def test_a_message_of_a_long_conversation_takes_few_calls(
    provider: str, fields: dict[str, Any]
) -> None:
    """A worker's other runs wait while a request is made: an SDK that compares each message with
    the types that it may have calls 740 functions for it.
    """
    _send_to_nobody(provider, fields, [UserMessage("Hi")])  # loads the SDK
    few, many = (_calls_of(provider, fields, number) for number in (100, 600))

    assert (many - few) / 500 < 150


@OF_EACH_API
def test_a_piece_of_an_answer_takes_few_calls(provider: str, fields: dict[str, Any]) -> None:
    """Pieces are most of what a worker computes: an object with the SDK's types for each, with its
    parts, takes 344 calls.
    """
    few, many = (_calls_of_answer(provider, fields, number) for number in (100, 600))

    assert (many - few) / 500 < 150


@contextmanager
def counting_calls() -> Iterator[list[int]]:
    """Count the calls of Python functions in this thread; the number is there after the block."""
    calls = 0
    counted: list[int] = []

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        yield counted
    finally:
        sys.setprofile(None)
        counted.append(calls)


def _calls_of(provider: str, fields: dict[str, Any], messages: int) -> int:
    """Count the calls until a request with that number of messages is sent."""
    with counting_calls() as counted:
        _send_to_nobody(provider, fields, [UserMessage(str(one)) for one in range(messages)])
    return counted[0]


def _calls_of_answer(provider: str, fields: dict[str, Any], pieces: int) -> int:
    """Count the calls of a request whose answer comes in that number of pieces."""
    with vendor(raw(_answer(provider, fields, pieces))) as fake:
        client = providers.load(route_to(provider, fake.url, **fields), faults=False, egress=None)
        request = ModelRequest(model="m", system_prompt="", messages=[UserMessage("Hi")])
        with counting_calls() as counted:
            found = list(client.stream(request, StopSignal()))
        client.close()
    assert pieces == sum(isinstance(one, TextDelta) for one in found)
    return counted[0]


def _answer(provider: str, fields: dict[str, Any], pieces: int) -> bytes:
    """Build the stream of an answer in that number of pieces."""
    if provider == "anthropic":
        events = (start(input_tokens=1), *text(0, *["word "] * pieces), finish("end_turn"))
        return anthropic_stream(*events)
    if fields["api"] == "responses":
        piece = {"type": "response.output_text.delta", "item_id": "a", "delta": "word "}
        end = {"type": "response.completed", "response": {"status": "completed", "output": []}}
        return b"".join(b"data: %b\n\n" % json_bytes(one) for one in (*[piece] * pieces, end))
    return openai_stream(*[delta(content="word ")] * pieces, delta(finish="stop"))


def _send_to_nobody(provider: str, fields: dict[str, Any], messages: Sequence[Message]) -> None:
    """Make a call to a server that is not there."""
    url = f"http://127.0.0.1:{closed_port()}/v1"
    client = providers.load(route_to(provider, url, **fields), faults=False, egress=None)
    request = ModelRequest(model="m", system_prompt="", messages=messages, max_output_tokens=10)
    with pytest.raises(ProviderError, match="onnect"):
        list(client.stream(request, StopSignal()))
    client.close()
