"""The finish reasons of chat completions, as compatible servers have them."""

import pytest

from arkloop.worker.contract.outcomes import RunFailure
from tests.worker.providers.fake_vendor import delta, openai_stream, raw, refusal
from tests.worker.providers.openai_chat_stream import end
from tests.worker.providers.two_routes import HELLO, outcome

BAD_CALL = raw(openai_stream(delta(finish="function_call_filter: MALFORMED_FUNCTION_CALL")))


@pytest.mark.parametrize("kind", ["MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL"])
@pytest.mark.parametrize("server", ["Google", "LiteLLM", "older LiteLLM"])
def test_a_call_that_gemini_filters_out_is_malformed(kind: str, server: str) -> None:
    """The server sends neither text nor a call: another try may have one."""
    google = f"function_call_filter: {kind}"
    reason = {"Google": google, "LiteLLM": kind.lower(), "older LiteLLM": kind}[server]
    failure = refusal("openai", raw(openai_stream(delta(finish=reason))))

    assert ("provider.malformed", True) == (failure.code, failure.retryable)
    assert reason in str(failure)


def test_a_call_that_is_filtered_out_is_tried_again() -> None:
    """The run does not complete with an empty answer."""
    found = outcome([BAD_CALL, HELLO])

    assert ("Hello.", "stop", (2, 0)) == (
        found.answer.content,
        found.answer.stop_reason,
        found.calls,
    )


def test_a_route_whose_calls_are_all_filtered_out_is_left() -> None:
    """After four tries the next route takes over."""
    found = outcome([BAD_CALL] * 4)

    assert ("Hello.", (4, 1)) == (found.answer.content, found.calls)


def test_an_answer_that_a_network_error_cuts_is_tried_again() -> None:
    """The half answer is void, and is no part of the final one."""
    half = raw(openai_stream(delta(content="The first"), delta(finish="network_error")))
    found = outcome([half, HELLO])

    assert ("Hello.", (2, 0)) == (found.answer.content, found.calls)
    assert ["provider.overloaded"] == found.context.voided


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("model_context_window_exceeded", "length"),  # z.ai
        ("model_length", "length"),  # Mistral
        ("sensitive", "content_filter"),  # z.ai
        ("content_filter: RECITATION", "content_filter"),  # Gemini
        ("content_filter: PROHIBITED_CONTENT", "content_filter"),
        ("CONTENT_FILTER: SAFETY", "content_filter"),
        ("MODEL_LENGTH", "length"),
        ("tool_calls", "tool_calls"),
        ("repetition", "repetition"),  # vLLM
        ("stop: x", "stop: x"),
    ],
)
def test_servers_have_names_of_their_own_for_a_reason(reason: str, expected: str) -> None:
    """Clients know one name of each; a reason of another meaning is passed on."""
    assert expected == end(delta(content="Hi"), delta(finish=reason)).stop_reason


@pytest.mark.parametrize("reason", ["model_context_window_exceeded", "model_length"])
def test_a_context_that_thinking_has_filled_fails_the_run(reason: str) -> None:
    """A response that was cut before any text is no answer; more output would not fit, either."""
    cut = raw(openai_stream(delta(reasoning_content="hm"), delta(finish=reason)))
    with pytest.raises(RunFailure, match="filled its context .* `context_tokens`") as caught:
        outcome([cut])

    assert "provider.output_limit" == caught.value.code
    assert "max_output_tokens" not in str(caught.value)
