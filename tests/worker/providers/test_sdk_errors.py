"""Refusals in vendors' own words, and what the run does after them.

Quoted from issues 1018 of anomalyco/opencode, 20 of HunorLaczko/ha-groq-cloud-api and 1119 of
huggingface/smolagents (Groq, LiteLLM in front of it).
"""

import json
from typing import Any

import pytest

from tests.worker.providers.failing_streams import in_stream
from tests.worker.providers.fake_vendor import Answer, refusal, status
from tests.worker.providers.two_routes import HELLO, outcome

FAILED_CALL = (
    "Failed to call a function. Please adjust your prompt. See 'failed_generation' for more"
    " details."
)
NO_MATCH = (
    "tool call validation failed: parameters for tool HassTurnOff did not match schema: errors:"
    " [`/domain`: expected array, but got string]"
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


def test_a_call_that_groq_cannot_read_is_tried_again() -> None:
    """The run does not fail, and after four tries the next route takes over."""
    bad = refused(FAILED_CALL, "tool_use_failed")

    assert (2, 0) == outcome([bad, HELLO]).calls
    assert (4, 1) == outcome([bad] * 4).calls
