"""Responses with HTTP 200 that are no streams of events."""

import json
import socket
from typing import Any

import pytest

from arkloop.worker.contract.messages import TextDelta
from tests.worker.providers.failing_streams import TEXT, hello
from tests.worker.providers.fake_vendor import Answer, ask, head, raw, refusal, vendor

VENDORS = pytest.mark.parametrize("provider", ["openai", "anthropic"])


def ok(content: Any, kind: str = "application/json") -> Answer:
    """Build a response with HTTP 200 and this body; a text is sent as it is."""
    sent = (content if isinstance(content, str) else json.dumps(content)).encode()

    def answer(client: socket.socket) -> None:
        client.sendall(head("200 OK", kind, f"Content-Length: {len(sent)}") + sent)

    return answer


@VENDORS
def test_the_error_of_a_proxy_is_that_of_the_vendor(provider: str) -> None:
    """Its text is passed on, without the key, and its code says what happens next."""
    error = {"code": 429, "message": "Slow down, sk-test-key."}
    found = refusal(provider, ok({"error": error, "user_id": "u"}))

    assert "provider.rate_limited" == found.code
    assert "Error code: 200 - Slow down, [key]." == str(found)


@VENDORS
def test_a_context_that_is_too_small_is_recognised(provider: str) -> None:
    """The thread is shortened then, as after any other error."""
    words = "This model's maximum prompt length is 8192 but the request contains 9000 tokens."
    found = refusal(provider, ok([{"error": {"code": 400, "message": words}}]))

    assert found.too_large is not None
    assert 8192 == found.too_large.limit_tokens


@VENDORS
def test_a_whole_answer_is_shown(provider: str) -> None:
    """People see from it that the server cannot stream."""
    body = {"choices": [{"message": {"role": "assistant", "content": "Hi " + "x" * 90_000}}]}
    found = refusal(provider, ok(body))

    assert "provider.malformed" == found.code
    begun = 'Instead of events, the provider responded with this: {"choices": [{"message": {"role":'
    assert str(found).startswith(begun)
    assert 600 > len(str(found))


@VENDORS
@pytest.mark.parametrize(
    "body",
    [{"message": "Hello World"}, {"message": {"role": "assistant"}}, {"detail": "Not Found"}],
)
def test_the_answer_of_another_server_is_no_overload(provider: str, body: dict[str, Any]) -> None:
    """It is shown, since the address may be wrong."""
    found = refusal(provider, ok(body))

    assert "provider.malformed" == found.code
    assert str(found).endswith(json.dumps(body))


@VENDORS
def test_a_page_makes_people_look_at_the_address(provider: str) -> None:
    """A web application answers each path with its page."""
    found = refusal(provider, ok("\n<!doctype html><title>Console</title>", "text/html"))

    assert "provider.malformed" == found.code
    assert str(found).endswith("responded with a page, so that the route's address may be wrong")


@VENDORS
def test_events_count_whatever_surrounds_them(provider: str) -> None:
    """Some servers call them JSON, or send empty lines until the model begins."""
    stream = "\n\n\n" + hello(provider).decode()
    with vendor(ok(stream), raw(b"\n", b"\n \n", hello(provider))) as fake:
        for _ in range(2):
            text = "".join(c.text for c in ask(provider, fake.url) if isinstance(c, TextDelta))
            assert text == TEXT
