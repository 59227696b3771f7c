"""Fields of chat completions that some servers refuse, and what they get from then on."""

import json
import socket
from dataclasses import replace
from typing import Any

import pytest

from arkloop.worker.contract.messages import ModelRequest, TurnEnd
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers import openai_provider
from tests.worker.providers.fake_vendor import (
    REQUEST,
    Answer,
    delta,
    head,
    openai_stream,
    raw,
    route_to,
    vendor,
)

DONE = raw(openai_stream(delta(content="Hi"), delta(finish="stop")))


def refused(body: Any, code: str = "400 Bad Request") -> Answer:
    """Build a refusal with exactly this body."""

    def answer(client: socket.socket) -> None:
        data = json.dumps(body).encode()
        client.sendall(head(code, "application/json", f"Content-Length: {len(data)}") + data)

    return answer


def saying(message: str, **fields: Any) -> Answer:
    return refused({"error": {"message": message, "type": "invalid_request_error", **fields}})


def forbidden(*names: str) -> Answer:
    """Build the refusal of a field as Mistral and Azure have it, from Pydantic."""
    wrong = {
        "type": "extra_forbidden",
        "loc": ["body", *names],
        "msg": "Extra inputs are not permitted",
        "input": True,
    }
    error = {"type": "invalid_request_error", "param": None, "code": None}
    return refused(
        {"object": "error", "message": {"detail": [wrong]}, **error}, "422 Unprocessable Entity"
    )


def sent(
    *answers: Answer, request: ModelRequest = REQUEST, calls: int = 2, **fields: Any
) -> list[dict[str, Any]]:
    """Make the calls of a run, and return the bodies that the server received."""
    with vendor(*answers) as fake:
        route = route_to("openai", fake.url, api="chat", **fields)
        provider = openai_provider.build(route, faults=False, egress=None)
        try:
            for _ in range(calls):
                *_, last = provider.stream(request, StopSignal())
                assert last == TurnEnd("stop")
        finally:
            provider.close()
        return fake.bodies


@pytest.mark.parametrize(
    "refusal",
    [
        refused({"error_code": "BAD_REQUEST", "message": 'json: unknown field "stream_options"'}),
        forbidden("stream_options"),
        forbidden("stream_options", "include_usage"),
        saying("property 'stream_options' is unsupported, did you mean 'stream'?"),
        saying("Unrecognized request argument supplied: stream_options"),
        saying("Not here.", param="stream_options.include_usage"),
    ],
    ids=["Databricks", "Azure", "Mistral", "Groq", "OpenAI", "by parameter"],
)
def test_a_server_that_refuses_to_report_usage_is_not_asked_again(refusal: Answer) -> None:
    """The call is made without the request for usage, and so are the run's later ones."""
    first, *others = sent(refusal, DONE, DONE)

    assert {"include_usage": True} == first.pop("stream_options")
    assert [first, first] == others


@pytest.mark.parametrize(
    "refusal",
    [
        "messages.1.content: stream_options is no text",
        "tools[0].function.parameters: `include_usage` has no type",
        "Unsupported value: 'temperature' does not support 0.5; stream_options may be null.",
        "The model `m` does not exist.",
        "[{'type': 'value_error', 'loc': ('body',), 'msg': 'Value error, The image is broken',"
        " 'input': {'messages': [], 'stream': True, 'stream_options': {'include_usage': True}}}]",
    ],
)
def test_a_refusal_of_something_else_is_passed_on(refusal: str) -> None:
    """The usage is still requested: what it costs would have to be estimated."""
    with pytest.raises(ProviderError, match="HTTP 400"):
        sent(saying(refusal), DONE, request=replace(REQUEST, settings={"temperature": 0.5}))


def test_no_field_is_refused_twice() -> None:
    """A server that refuses on is not asked for ever."""
    refusal = saying("unknown field: stream_options")

    with pytest.raises(ProviderError, match="stream_options"):
        sent(refusal, refusal, DONE)


LIMITED = replace(REQUEST, max_output_tokens=400)
OLDER, NEWER = "max_tokens", "max_completion_tokens"
USE_THE_NEWER = (
    f"Unsupported parameter: '{OLDER}' is not supported with this model. Use '{NEWER}' instead."
)


@pytest.mark.parametrize(
    ("platform", "refusal", "names"),
    [
        (None, saying(USE_THE_NEWER, param=OLDER, code="unsupported_parameter"), (OLDER, NEWER)),
        (None, saying(USE_THE_NEWER, code="invalid_request_body"), (OLDER, NEWER)),
        (None, saying(f"litellm.BadRequestError: {USE_THE_NEWER}"), (OLDER, NEWER)),
        ("azure", forbidden(NEWER), (NEWER, OLDER)),
        ("azure", saying(f"Unrecognized request argument supplied: {NEWER}"), (NEWER, OLDER)),
        ("azure", saying(f'json: unknown field "{NEWER}"'), (NEWER, OLDER)),
    ],
)
def test_a_refused_name_of_the_output_limit_is_replaced_by_the_other(
    platform: str | None, refusal: Answer, names: tuple[str, str]
) -> None:
    """The limit is the same, and the later calls of the run have the new name at once."""
    first, *others = sent(refusal, DONE, DONE, request=LIMITED, platform=platform)

    old, new = names
    assert (400, False) == (first.pop(old), new in first)
    assert [{**first, new: 400}] * 2 == others


@pytest.mark.parametrize(
    "refusal",
    [
        "max_tokens is too large: 400. This model supports at most 300 completion tokens.",
        "max_tokens values greater than 300 are not supported by this model.",
        "'max_tokens' or 'max_completion_tokens' is too large: 400.",
        "Invalid 'max_tokens': integer above maximum value.",
        "Unsupported value: 'max_tokens' does not support 400 with this model.",
        "messages.0.content: max_tokens is not supported",
    ],
)
def test_a_limit_that_is_only_too_high_keeps_its_name(refusal: str) -> None:
    """A server that ignores the other name would write without a bound."""
    with pytest.raises(ProviderError, match="HTTP 400"):
        sent(saying(refusal), DONE, request=LIMITED)


def test_a_server_that_refuses_both_names_gets_no_call_without_a_limit() -> None:
    """A budget has reserved no more than the limit."""
    other = saying(f"Unknown parameter: '{NEWER}'.", param=NEWER)

    with pytest.raises(ProviderError, match=NEWER):
        sent(saying(USE_THE_NEWER), other, DONE, request=LIMITED)
