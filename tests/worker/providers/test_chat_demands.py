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


def sent(*answers: Answer, request: ModelRequest = REQUEST, calls: int = 2) -> list[dict[str, Any]]:
    """Make the calls of a run, and return the bodies that the server received."""
    with vendor(*answers) as fake:
        provider = openai_provider.build(route_to("openai", fake.url), faults=False, egress=None)
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
