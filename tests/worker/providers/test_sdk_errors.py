"""Refusals in vendors' own words, and what the run does after them.

Quoted from issues 1018 of anomalyco/opencode, 20 of HunorLaczko/ha-groq-cloud-api and 1119 of
huggingface/smolagents (Groq, LiteLLM in front of it), 10778 of continuedev/continue (xAI) and
5098 of cline/cline (Hugging Face).
"""

import gc
import json
import socket
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx2
import openai
import pytest

from arkloop.worker import providers
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers.sdk_errors import provider_errors
from tests.no_descriptor import no_descriptor_left
from tests.worker.providers.failing_streams import in_stream
from tests.worker.providers.fake_vendor import (
    REQUEST,
    Answer,
    head,
    refusal,
    route_to,
    status,
    vendor,
)
from tests.worker.providers.two_routes import HELLO, outcome

POST = httpx2.Request("POST", "https://vendor.example/v1")
FAILED_CALL = (
    "Failed to call a function. Please adjust your prompt. See 'failed_generation' for more"
    " details."
)
NO_MATCH = (
    "tool call validation failed: parameters for tool HassTurnOff did not match schema: errors:"
    " [`/domain`: expected array, but got string]"
)
NO_JSON = (
    "Failed to generate JSON. Please adjust your prompt. See 'failed_generation' for more details."
)
XAIS_KEY = (
    "Incorrect API key provided: sk***gA. You can obtain an API key from https://console.x.ai."
)
GROQS = {"type": "invalid_request_error", "code": "tool_use_failed"}


def refused(message: str, error_code: Any, kind: str = "invalid_request_error") -> Answer:
    return status("400 Bad Request", message=message, kind=kind, error_code=error_code)


@pytest.mark.parametrize("message", [FAILED_CALL, NO_MATCH, f"{NO_MATCH} 'Model Not Exist'"])
def test_a_call_that_groq_cannot_read_is_malformed(message: str) -> None:
    """The model has written it, not the caller: another try may have a better one."""
    for answer in (
        refused(message, "tool_use_failed"),
        in_stream("openai", {**GROQS, "message": message, "status_code": 400}),
        refused(f"litellm.BadRequestError: GroqException - {_body(message)}", "400"),
    ):
        error = refusal("openai", answer)
        assert ("provider.malformed", True) == (error.code, error.retryable)
        assert not error.is_gone


def _body(message: str) -> str:
    failed = '<function=web_search{"query": "Model Not Exist"}</function>'
    error = {"message": message, **GROQS, "failed_generation": failed}
    return json.dumps({"error": error}, separators=(",", ":"))


def test_json_that_groq_cannot_read_is_malformed() -> None:
    """A request with `response_format` is refused like one with tools."""
    said = {**GROQS, "code": "json_validate_failed", "message": NO_JSON}
    by_litellm = f"litellm.BadRequestError: GroqException - {json.dumps({'error': said})}"
    for answer in (
        refused(NO_JSON, "json_validate_failed"),
        in_stream("openai", {**said, "status_code": 400}),
        refused(by_litellm, "400"),
    ):
        error = refusal("openai", answer)
        assert ("provider.malformed", True) == (error.code, error.retryable)


def test_a_call_that_groq_cannot_read_is_tried_again() -> None:
    """The run does not fail, and after four tries the next route takes over."""
    bad = refused(FAILED_CALL, "tool_use_failed")

    assert (2, 0) == outcome([bad, HELLO]).calls
    assert (4, 1) == outcome([bad] * 4).calls


XAIS_BODY = {"code": "Client specified an invalid argument", "error": XAIS_KEY}


def openrouter_refuses(quoted: dict[str, Any]) -> Answer:
    """Build OpenRouter's 400 about the body of the vendor behind it."""
    error = {"message": "Provider returned error", "code": 400}
    return answers({"error": {**error, "metadata": {"raw": json.dumps(quoted)}}})


def answers(said: Any) -> Answer:
    body = json.dumps(said).encode()

    def answer(client: socket.socket) -> None:
        length = f"Content-Length: {len(body)}"
        client.sendall(head("400 Bad Request", "application/json", length) + body)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        answers(XAIS_BODY),
        refused(f"litellm.BadRequestError: XaiException - {XAIS_KEY}", "400"),
        refused(f"litellm.BadRequestError: XaiException - {json.dumps(XAIS_BODY)}", "400"),
        refused(f"Error code: 400 - {XAIS_BODY}", "400"),
        openrouter_refuses(XAIS_BODY),
        in_stream("openai", {"type": "invalid_request_error", "message": XAIS_KEY}),
    ],
    ids=["xAI", "LiteLLM", "JSON in LiteLLM's", "Python's", "OpenRouter", "in the stream"],
)
def test_a_key_that_xai_refuses_is_no_fault_of_the_request(answer: Answer) -> None:
    """It is a 400 there: the next route takes over at once."""
    error = refusal("openai", answer)

    assert ("provider.auth", False, True) == (error.code, error.retryable, error.is_of_route)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (
            "The requested model 'deepseek-ai/DeepSeek-V3' is not supported by any provider you"
            " have enabled.",
            "model_not_supported",
        ),
        ("The requested model 'gpt-4-1106-preview' does not exist.", "model_not_found"),
        ("Model does not exist. Please check it carefully.", 20012),
    ],
    ids=["Hugging Face", "OpenAI", "SiliconFlow"],
)
def test_a_model_is_missed_with_a_400(message: str, code: Any) -> None:
    """The next route takes over by the vendor's words, which others quote."""
    own = {"message": message, "type": None, "param": None, "code": code}
    body = own if isinstance(code, int) else {"error": own}
    by_litellm = "litellm.BadRequestError: OpenAIException -"
    for answer in (
        refused(message, code),
        refused(message, None),
        refused(f"{by_litellm} {message}", "400"),
        refused(f"{by_litellm} {json.dumps(body, separators=(',', ':'))}", "400"),
        refused(f"{by_litellm} Error code: 400 - {body}", "400"),
        refused(f"{by_litellm} {json.dumps(dict(reversed(own.items())))}", "400"),
        openrouter_refuses(body),
        in_stream("openai", {"type": "invalid_request_error", "code": code, "message": message}),
    ):
        error = refusal("openai", answer)
        assert ("provider.invalid_request", True) == (error.code, error.is_gone)


@pytest.mark.parametrize("code", ["model_not_supported", "model_not_found"])
def test_a_model_is_missed_by_the_vendors_code(code: str) -> None:
    """The words beside it do not matter."""
    body = json.dumps({"error": {"message": "No such {model}.", "param": None, "code": code}})
    for answer in (
        refused("No such model.", code),
        refused(f"litellm.BadRequestError: HuggingfaceException - {body}", "400"),
    ):
        error = refusal("openai", answer)
        assert ("provider.invalid_request", True) == (error.code, error.is_gone)


@pytest.mark.parametrize(
    "quoted",
    [
        XAIS_KEY,
        "The requested model 'gpt-9' does not exist.",
        "Model does not exist. Please check it carefully.",
    ],
)
def test_words_of_a_user_in_a_refusal_decide_nothing(quoted: str) -> None:
    """Such words count at the beginning of the vendor's message alone."""
    message = f"Invalid value for 'messages[0].content': 'Why do I read this? - {quoted}'"
    embedded = f"Invalid value: '{json.dumps({'error': quoted})}'"
    by_litellm = "litellm.BadRequestError: OpenAIException -"
    for answer in (
        refused(message, None),
        refused(embedded, None),
        refused(f"{by_litellm} {json.dumps({'message': embedded})}", "400"),
        refused(f"{by_litellm} {{'message': {embedded!r}}}", "400"),
        openrouter_refuses({"message": message}),
    ):
        error = refusal("openai", answer)
        assert ("provider.invalid_request", False) == (error.code, error.is_of_route)


def test_a_wrong_key_at_xai_is_left_for_the_next_route() -> None:
    """The run is answered by the second provider."""
    assert (1, 1) == outcome([answers(XAIS_BODY)]).calls


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_process_without_a_descriptor_blames_no_vendor(provider: str, host: str) -> None:
    """It cannot look a name up either; the vendor is called again, by a worker that can."""
    with vendor(status("401 Unauthorized")) as fake:
        url = f"http://{host}:{fake.port}/v1"
        loaded = providers.load(route_to(provider, url), faults=False)
        with no_descriptor_left(), pytest.raises(OSError, match="Too many open files"):
            list(loaded.stream(REQUEST, StopSignal()))
        loaded.close()

        assert [] == fake.heads
        assert "provider.auth" == refusal(provider, status("401 Unauthorized")).code


class Large:
    """An object that only the frame of a call refers to."""


@pytest.mark.parametrize(
    "error",
    [
        lambda: httpx2.ConnectError("refused", request=POST),
        lambda: openai.APIConnectionError(request=POST),
    ],
    ids=["of the HTTP client", "of the SDK"],
)
def test_a_call_that_a_shortage_ends_frees_its_memory(error: Callable[[], Exception]) -> None:
    """Other runs of the process need it before garbage is collected."""
    memory: list[weakref.ref[Large]] = []

    def call() -> None:
        large = Large()
        memory.append(weakref.ref(large))
        raise error() from MemoryError()

    gc.disable()
    try:
        with suppress(MemoryError), provider_errors(openai, None):
            call()
        assert memory[0]() is None
    finally:
        gc.enable()
