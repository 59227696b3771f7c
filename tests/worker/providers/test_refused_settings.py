"""Refusals of settings, in the words of vendors and servers."""

from typing import Any

import pytest

from arkloop.worker.providers import refused_settings

SETTINGS: dict[str, Any] = {
    "temperature": 1,
    "top_p": 1,
    "stop": ["x"],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "reasoning_effort": "max",
    "verbosity": "low",
    "extra_body": {"top_k": 5},
    "output_schema": {"type": "object"},
}
BY_PARAM = "Unsupported value: it does not support 'max' with this model."


@pytest.mark.parametrize(
    ("param", "message", "refused"),
    [
        # OpenAI
        ("temperature", "Unsupported parameter: 'temperature' is not supported.", "temperature"),
        ("reasoning.effort", BY_PARAM, "reasoning_effort"),
        ("reasoning_effort", BY_PARAM, "reasoning_effort"),
        ("text.verbosity", BY_PARAM, "verbosity"),
        ("stop", BY_PARAM, "stop"),
        ("stop[3]", BY_PARAM, "stop"),
        ("messages[1].content", "Invalid `temperature` of the room.", None),
        (None, "Unrecognized request argument supplied: top_k", "extra_body.top_k"),
        # Anthropic
        (None, "`temperature` is deprecated for this model.", "temperature"),
        (None, "`temperature` and `top_p` cannot both be specified.", "temperature"),
        (None, "temperature: range: 0..1", "temperature"),
        (None, '"thinking.type.enabled" is not supported for this model.', "reasoning_effort"),
        (None, "thinking.adaptive.display: Extra inputs are not permitted", "reasoning_effort"),
        (None, "output_config.effort: Input should be 'low' or 'high'", "reasoning_effort"),
        (None, "This model does not support the effort parameter.", "reasoning_effort"),
        (None, "stop_sequences: each stop sequence must contain non-whitespace", "stop"),
        (None, "tool_choice: Tool 'x' not found in provided tools", "tool_choice"),
        (None, "messages.1.content.0.thinking: Invalid signature in thinking block", None),
        (None, "Provider returned error: messages.1.content.0.thinking: Invalid signature", None),
        (
            None,
            "messages.1.content.0.type: Expected `thinking`, but found `tool_use`. When `thinking`"
            " is enabled, a final `assistant` message must start with a thinking block.",
            "reasoning_effort",
        ),
        (
            None,
            "tools.3.custom.input_schema: JSON schema is invalid. It must match JSON Schema draft"
            " 2020-12 (https://json-schema.org/draft/2020-12).",
            None,
        ),
        (
            None,
            "Provider returned error: tools.3.custom.input_schema: JSON schema is invalid.",
            None,
        ),
        # Anthropic, of structured output: a schema beyond its limits, a server without the field
        (
            None,
            "Schemas contains too many parameters with union types (17 parameters with type arrays"
            " or anyOf). This causes exponential compilation cost.",
            "output_schema",
        ),
        (None, "Schema is too complex for compilation.", "output_schema"),
        (None, "output_config: Extra inputs are not permitted", "output_schema"),
        (None, "output_config.format: Extra inputs are not permitted", "output_schema"),
        (None, "output_config.effort: Extra inputs are not permitted", "reasoning_effort"),
        # Vertex AI
        (
            None,
            "Organization Policy constraint constraints/vertexai.allowedPartnerModelFeatures"
            " violated for `projects/1` attempting to use a disallowed feature structured_outputs"
            " for Partner model claude-opus-4-6.",
            "output_schema",
        ),
        # OpenAI by another server
        (
            None,
            "Invalid schema for function 'mix': In context=('properties', 'temperature'), array"
            " schema missing items.",
            None,
        ),
        (None, "Invalid schema for response_format 'output': schema is too deep", "output_schema"),
        # vLLM
        (
            None,
            "[{'type': 'extra_forbidden', 'loc': ('body', 'verbosity'), 'msg': 'Extra inputs are"
            " not permitted', 'input': 'low'}]",
            "verbosity",
        ),
        # Gemini
        (
            None,
            "Unknown name \"additionalProperties\" at 'generation_config.response_schema': Cannot"
            " find field.",
            "output_schema",
        ),
        (
            None,
            "GenerateContentRequest.generation_config.response_schema.properties: should be"
            " non-empty for OBJECT type",
            "output_schema",
        ),
        (
            None,
            "* GenerateContentRequest.tools[0].function_declarations[1].parameters.properties[stop]"
            ".items: missing field.",
            None,
        ),
        # DeepSeek
        (None, "This response_format type is unavailable now", "output_schema"),
        (None, "Thinking mode does not support this tool_choice", "tool_choice"),
        # xAI
        (
            None,
            "Error code: 400 - {'code': 'invalid-argument', 'error': 'Model grok-build-0.1 does not"
            " support parameter reasoningEffort.'}",
            "reasoning_effort",
        ),
        (None, "Argument not supported on this model: stop", "stop"),
        (None, 'Unknown name "parallelToolCalls": Cannot find field.', "parallel_tool_calls"),
        (None, "The model `m` does not exist.", None),
    ],
)
def test_the_refused_setting_is_found(param: Any, message: str, refused: str | None) -> None:
    """The parameter counts where the vendor names one, else the first name in its words."""
    assert refused == refused_settings.find(400, param, message, SETTINGS)


@pytest.mark.parametrize("param", ["reasoning.summary", None])
def test_a_field_of_an_object_is_not_its_namesake(param: str | None) -> None:
    """A refused summary of the reasoning leaves the effort as it is."""
    settings = {"reasoning_effort": "high", "extra_body": {"reasoning": {"summary": "detailed"}}}
    message = "Unsupported parameter: 'reasoning.summary' is not supported with this model."

    assert "extra_body.reasoning" == refused_settings.find(400, param, message, settings)
    effort = message.replace("summary", "effort")
    param = param and "reasoning.effort"
    assert "reasoning_effort" == refused_settings.find(400, param, effort, settings)


@pytest.mark.parametrize("status", [401, 404, 429, 500])
def test_other_failures_are_about_no_setting(status: int) -> None:
    """Only an invalid request can be."""
    assert refused_settings.find(status, "temperature", "no", SETTINGS) is None


def test_a_setting_that_was_not_sent_was_not_refused() -> None:
    """No call is repeated without a change."""
    assert refused_settings.find(400, "temperature", "no `temperature`", {"seed": 1}) is None
