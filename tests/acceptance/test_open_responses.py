"""`/v1/responses` by the checks of `llm-comply` for Open Responses, of a model that reasons."""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from tests.system import System
from tests.worker.providers.openai_vendor import (
    Items,
    OpenAIVendor,
    function_call,
    message,
    reasoning,
)

pytestmark = pytest.mark.processes

#: The checks ask only models with such a name for a summary of their reasoning.
MODEL = "gpt-5-pinned"
#: All that version 0.5.0 has. One that is added by a later version has to be looked at here.
CHECKS = {
    *("basic-response", "system-prompt", "multi-turn", "tool-calling", "streaming-response"),
    *("streaming-usage", "image-input", "assistant-phase", "response-output-phase-schema"),
    *("compact-response", "compact-missing-model", "reasoning-summary", "error-handling"),
}


def _answer(body: Mapping[str, Any]) -> Items:
    """Answer with reasoning where that is asked for.

    The checks refuse the deltas of a summary, which they do not know, though their copy of the
    specification has them: see `tests/api/protocols/test_responses_projection_open.py`.
    """
    name = f"{len(body['input'])}"
    if any(tool["name"] == "get_weather" for tool in body.get("tools", ())):
        return [function_call(name, "get_weather", {"location": "San Francisco"})]
    is_asked = "Show your reasoning" in json.dumps(body["input"])
    return [*[reasoning(name, "15 times 37.")] * is_asked, message(name, "It is 555.")]


def test_all_checks_pass(system: System) -> None:
    """None is skipped, and only those of an endpoint that this service lacks are warned about."""
    owner = system.caller()
    _, key = owner.api_key()
    with OpenAIVendor(_answer) as vendor:
        model = {"model": MODEL, "api": "responses", "is_default": True}
        provider = {"name": "o", "kind": "openai", "base_url": vendor.url, "models": [model]}
        owner.made("/v1/llm-providers", provider)
        command = [sys.executable, "-m", "llm_comply.cli", "--json", "--model", MODEL]
        checked = subprocess.run(
            [*command, "--base-url", f"{owner.url}/v1", "--api-key", key],
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        refused = vendor.refused

    report = json.loads(checked.stdout[checked.stdout.index("{") :])
    failed = [result for result in report["results"] if result["status"] != "passed"]
    assert [] == failed, json.dumps(failed, indent=1)
    assert {result["id"] for result in report["results"]} == CHECKS
    assert ["compact-response"] == [
        result["id"] for result in report["results"] if "warnings" in result
    ]
    assert [] == refused
    assert 0 == checked.returncode
