"""Errors of vendors whose bodies have another shape than OpenAI's."""

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from arkloop.worker.contract.messages import (
    AssistantMessage,
    ModelRequest,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from arkloop.worker.contract.outcomes import ProviderError
from tests.worker.providers.failing_streams import in_stream
from tests.worker.providers.fake_vendor import (
    Answer,
    ask,
    delta,
    head,
    openai_stream,
    raw,
    refusal,
    vendor,
)


def routed(raw: Any) -> dict[str, Any]:
    """Build OpenRouter's error, which quotes the server behind it."""
    metadata = {"raw": raw, "provider_name": "Together"}
    return {"error": {"message": "Provider returned error", "code": 400, "metadata": metadata}}


SHAPES: dict[str, Callable[[str], Any]] = {
    "Gemini": lambda text: [{"error": {"code": 400, "message": text, "status": "INVALID"}}],
    "xAI": lambda text: {"code": "Some requested entity was not found", "error": text},
    "TGI": lambda text: {"error": text, "error_type": "validation"},
    "LM Studio, Ollama": lambda text: {"error": text},
    "FastAPI": lambda text: {"detail": text},
    "FastAPI, of fields": lambda text: {"detail": [{"loc": ["body"], "msg": text}]},
    "Mistral": lambda text: {"object": "error", "message": {"detail": [{"msg": text}]}},
    "a detail beside the text": lambda text: {"message": text, "detail": {"trace": "1"}},
    "Cloudflare": lambda text: {"success": False, "errors": [{"code": 5021, "message": text}]},
    "SGLang": lambda text: {"object": "error", "message": text, "code": 400},
    "NestJS": lambda text: {"statusCode": 400, "error": "Bad Request", "message": [text]},
    "Spring": lambda text: {"status": 400, "error": "Bad Request", "message": text},
    "OpenRouter": lambda text: routed(json.dumps({"error": {"message": text}})),
    "OpenRouter, of a text": routed,
    "no JSON": lambda text: text,
}
SHAPED = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def body(code: int, content: Any) -> Answer:
    """Build a refusal with this body; a text is sent as it is."""
    sent = (content if isinstance(content, str) else json.dumps(content)).encode()

    def answer(client: socket.socket) -> None:
        client.sendall(head(f"{code} X", "application/json", f"Content-Length: {len(sent)}"))
        client.sendall(sent)

    return answer


@SHAPED
def test_the_vendors_words_are_passed_on(shape: Callable[[str], Any]) -> None:
    """Without the key, which some repeat."""
    error = refusal("openai", body(400, shape("No. Your key sk-test-key is fine.")))

    assert "provider.invalid_request" == error.code
    assert str(error).startswith("The provider responded with HTTP 400: Error code: 400 - ")
    assert str(error).endswith("No. Your key [key] is fine.")


@SHAPED
def test_a_context_that_is_too_small_is_recognised(shape: Callable[[str], Any]) -> None:
    """The thread is shortened then."""
    words = "This model's maximum prompt length is 8192 but the request contains 9000 tokens."
    error = refusal("openai", body(400, shape(words)))

    assert error.too_large is not None
    assert (8192, 9000) == (error.too_large.limit_tokens, error.too_large.sent_tokens)


@SHAPED
def test_an_empty_account_is_recognised(shape: Callable[[str], Any]) -> None:
    """Waiting does not fill it: the next route takes over."""
    error = refusal("openai", body(429, shape("Your prepayment credits are depleted. Please")))

    assert ("provider.auth", True) == (error.code, error.is_of_route)


@SHAPED
def test_a_refused_setting_is_named(shape: Callable[[str], Any]) -> None:
    """The request is sent again without it."""
    request = ModelRequest(
        model="m", system_prompt="", messages=[UserMessage("Hi")], settings={"top_p": 0.5}
    )
    refused = body(400, shape("Unsupported parameter: 'top_p' is not supported with this model."))
    with vendor(refused) as fake, pytest.raises(ProviderError) as caught:
        ask("openai", fake.url, request)

    assert "top_p" == caught.value.refused_setting


def test_the_code_of_the_server_behind_another_counts() -> None:
    """The one in front has the status alone."""
    upstream = {"error": {"message": "Too long.", "code": "context_length_exceeded"}}
    error = refusal("openai", body(400, routed(json.dumps(upstream))))

    assert error.too_large is not None
    assert str(error).endswith("Error code: 400 - Provider returned error: Too long.")


def test_a_refused_field_is_named_by_its_place() -> None:
    """Pydantic's text says only what is wrong with it."""
    wrong = {"type": "extra", "loc": ["body", "top_p"], "msg": "Extra inputs are not permitted"}
    request = ModelRequest(
        model="m", system_prompt="", messages=[UserMessage("Hi")], settings={"top_p": 0.5}
    )
    with vendor(body(422, {"detail": [wrong]})) as fake, pytest.raises(ProviderError) as caught:
        ask("openai", fake.url, request)

    assert "top_p" == caught.value.refused_setting
    assert str(caught.value).endswith("top_p: Extra inputs are not permitted")


WORDS = (
    "API key not valid",
    "Budget has been exceeded! It's 3",
    'Invalid model name passed in "m"',
    "ContextWindowExceededError",
    "Invalid image.",
    "max_tokens \\",
)


def within_json(wrong: list[Any]) -> str:
    """Write an error as a proxy does that quotes the body of the server behind it."""
    return json.dumps({"detail": json.dumps(wrong)})


def within_itself(wrong: list[Any]) -> str:
    return json.dumps({"error": {"message": within_json(wrong)}})


def as_text(wrong: list[Any]) -> str:
    """Write an error as Pydantic's `str` does."""
    [one] = wrong
    lines = [
        f"1 validation error for Request\nbody\n  {one['msg']} "
        f"[type=value_error, input_value={given!r}, input_type={type(given).__name__}]\n"
        for given in (one["input"], one["input"]["messages"][0]["content"] + ", input_type=str")
    ]
    return "".join(lines)


@pytest.mark.parametrize("said", WORDS)
@pytest.mark.parametrize("write", [str, json.dumps, within_json, within_itself, as_text])
@pytest.mark.parametrize("said_by", ["", "litellm.BadRequestError: OpenAIException - "])
@pytest.mark.parametrize("vendors", ["openai", "anthropic"])
def test_a_users_words_are_not_the_vendors(
    vendors: str, said_by: str, write: Callable[[Any], str], said: str
) -> None:
    """Pydantic's texts quote the request, and vLLM passes them on."""
    sent = {"messages": [{"role": "user", "content": said}], "temperature": 0.5}
    why = "The parameter 'top_k' is not supported."
    wrong = {"type": "value_error", "loc": ("body",), "msg": why, "input": sent, "ctx": {"a": why}}
    settings = {"temperature": 0.5, "extra_body": {"top_k": 1}}
    request = ModelRequest(
        model="m", system_prompt="", messages=[UserMessage("Hi")], settings=settings
    )
    for refused in (SHAPES["SGLang"](said_by + write([wrong])), {"detail": [wrong]}):
        with vendor(body(400, refused)) as fake, pytest.raises(ProviderError) as caught:
            ask(vendors, fake.url, request)
        assert "extra_body.top_k" == caught.value.refused_setting
        assert said not in str(caught.value)


def test_a_code_beside_a_text_counts() -> None:
    """It may be all that says what the refusal is about."""
    error = refusal("openai", body(400, {"error": "Too long.", "code": "context_length_exceeded"}))

    assert error.too_large is not None


@SHAPED
def test_what_a_turn_lacks_is_learnt(shape: Callable[[str], Any]) -> None:
    """A thread that another model has begun continues with Gemini."""
    call = ToolCall("c", "camera", "{}")
    request = ModelRequest(
        model="m",
        system_prompt="",
        messages=[
            UserMessage("Look"),
            AssistantMessage("", (call,)),
            ToolMessage("c", "camera", "a"),
        ],
    )
    demand = "Function call is missing a thought_signature in functionCall parts."
    done = raw(openai_stream(delta(content="A cat.", finish="stop")))
    with vendor(body(400, shape(demand)), done) as fake:
        assert ask("openai", fake.url, request)

    first, second = (one["messages"][1]["tool_calls"][0] for one in fake.bodies)
    assert ("extra_content" in first, "extra_content" in second) == (False, True)


def test_a_page_of_a_proxy_is_not_quoted() -> None:
    """Its words are nobody's reason."""
    error = refusal("openai", body(502, "<html><h1>Bad gateway</h1></html>"))

    assert "The provider responded with HTTP 502: Error code: 502" == str(error)


def test_the_words_of_the_server_behind_another_count_in_a_stream() -> None:
    """OpenRouter begins its streams before that server has answered."""
    quoted = routed("This model's maximum prompt length is 8192 but the request contains 9000.")
    error = refusal("openai", in_stream("openai", quoted["error"]))

    assert error.too_large is not None


def test_an_error_in_a_stream_may_be_a_text() -> None:
    """It is passed on as that of a response is."""
    error = refusal("openai", in_stream("openai", "The engine is restarting."))

    assert "provider.overloaded" == error.code
    assert str(error).endswith("The engine is restarting.")
