"""The real local model of `arkloop dev`, spoken to in both vendors' ways.

It is small: only the shape of what it says is judged.
"""

from typing import Any

import pytest

from arkloop.cli.dev.local_model import CONTEXT_TOKENS, PARALLEL_REQUESTS
from arkloop.shared.catalog.model_routes import Route
from arkloop.worker import providers
from arkloop.worker.contract.messages import AssistantMessage, Chunk, ModelRequest, TextDelta
from arkloop.worker.contract.outcomes import CancelRequested, ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers import context_sizes
from tests.peers.calls import Server, end_of, text_of
from tests.worker.recorded_run import RecordedRun

pytestmark = pytest.mark.peers

#: More than one piece; each takes a processor some time.
TOKENS = 6
#: Other tests keep the processors busy, and a model needs all of one.
IDLE_SECONDS = 100.0


@pytest.fixture(params=["openai", "responses", "anthropic"])
def server(request: pytest.FixtureRequest, real_model: str) -> Server:
    patient: dict[str, Any] = {"max_output_tokens": TOKENS, "idle_seconds": IDLE_SECONDS}
    if request.param == "anthropic":
        return Server("anthropic", real_model, "smol", **patient)
    api = "responses" if request.param == "responses" else None
    return Server("openai", f"{real_model}/v1", "smol", api=api, **patient)


def answer_of(server: Server, request: ModelRequest) -> list[Chunk]:
    """Ask the model, and again if its server closes the connection just then, as the loop does."""
    for _ in range(4):
        try:
            return server.one_try(request)
        except ProviderError as error:
            if not error.retryable:
                raise
    return server.one_try(request)


def test_a_real_model_streams_and_reports_its_usage(server: Server) -> None:
    """More than one piece; reported tokens within the worst case, which is not absurd."""
    request = server.request("What is the capital of France? Answer in one sentence.")

    chunks = answer_of(server, request)

    usage = end_of(chunks).usage
    provider = providers.load(server.route, faults=False)
    worst, estimate = provider.worst_case(request), provider.estimate(request, text_of(chunks))
    provider.close()
    assert len([chunk for chunk in chunks if isinstance(chunk, TextDelta)]) > 1
    assert end_of(chunks).stop_reason in ("stop", "length")
    assert usage is not None and "reported" == usage.source
    assert 10 < usage.input_tokens <= worst.input_tokens < 100 * usage.input_tokens
    assert 0 < usage.output_tokens <= worst.output_tokens
    assert usage.input_tokens / 4 < estimate.input_tokens < usage.input_tokens * 4


def test_a_real_model_is_told_the_whole_conversation(server: Server) -> None:
    """More messages are more tokens, by its own count."""
    short = end_of(answer_of(server, server.request("Hi"))).usage
    conversation = ("Hi", AssistantMessage("Hello, how are you today?"), "Fine. And you?")
    long = end_of(answer_of(server, server.request(*conversation))).usage

    assert short and long and short.input_tokens + 10 < long.input_tokens


def test_a_real_model_refuses_what_does_not_fit_its_context(server: Server) -> None:
    """A request that exceeds the model's context is not retried, since it would not fit the next
    time.
    """
    with pytest.raises(ProviderError) as caught:
        answer_of(server, server.request("word " * 20_000))

    assert ("provider.invalid_request", False) == (caught.value.code, caught.value.retryable)


def test_a_real_server_reports_the_size_of_its_context(real_model: str) -> None:
    """What one of its parallel requests may have, not what all share."""
    route = Route(id="r", provider="openai", model="smol", base_url=f"{real_model}/v1")

    assert CONTEXT_TOKENS // PARALLEL_REQUESTS == context_sizes.ask(route, None, RecordedRun())


def test_a_real_model_is_cancelled_in_its_answer(server: Server) -> None:
    """The stream ends with the reason of the stop, and the server serves the next one."""
    stop = StopSignal()
    provider = providers.load(server.route, faults=False)
    stream = provider.stream(server.request("Tell me a very long story."), stop)
    next(stream)
    stop.set(CancelRequested())

    with pytest.raises(CancelRequested):
        list(stream)
    provider.close()

    assert text_of(answer_of(server, server.request("Hi")))
