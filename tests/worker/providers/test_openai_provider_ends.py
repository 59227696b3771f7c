"""The finish reasons of chat completions, as compatible servers have them."""

import pytest

from tests.worker.providers.fake_vendor import delta, openai_stream, raw, refusal
from tests.worker.providers.two_routes import HELLO, outcome

BAD_CALL = raw(openai_stream(delta(finish="function_call_filter: MALFORMED_FUNCTION_CALL")))


@pytest.mark.parametrize("kind", ["MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL"])
def test_a_call_that_gemini_filters_out_is_malformed(kind: str) -> None:
    """The server sends neither text nor a call: another try may have one."""
    reason = f"function_call_filter: {kind}"
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
