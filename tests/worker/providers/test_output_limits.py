"""Output limits above what a model can write, and the words by which vendors refuse them.

Quoted from https://github.com/anthropics/claude-code/issues/24451 (Anthropic),
https://github.com/diffbot/code-gpt-docs/issues/284 (OpenAI),
https://github.com/Gitlawb/openclaude/issues/331 (Doubao, as OpenAI's Responses API),
https://github.com/langgenius/dify/issues/10390 (Bedrock),
https://github.com/BerriAI/litellm/pull/10548 (Gemini),
https://github.com/cooneycw/claude-power-pack/issues/329 and
https://github.com/skapadia3214/groq-moa/issues/8 (Groq),
https://github.com/deepseek-ai/DeepSeek-V3/issues/69 (DeepSeek),
https://github.com/open-webui/open-webui/issues/10507 (Qwen) and
https://github.com/DaviRain-Su/hyper-grok-build/issues/44 (Ollama).
"""

from dataclasses import replace
from typing import Any

import pytest

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.types import ContextTruncated, RunFallback, RunSettingsDropped
from arkloop.worker import providers
from arkloop.worker.agent.loop import Answer
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.contract.outcomes import ProviderError
from tests.worker.agent.looping_models import agent_for, run
from tests.worker.providers.anthropic_answers import block, finish, start, text
from tests.worker.providers.fake_vendor import (
    anthropic_stream,
    delta,
    openai_stream,
    raw,
    refusal,
    route_to,
    status,
    vendor,
)
from tests.worker.recorded_run import RecordedRun

CLAUDES = (
    "max_tokens: 100000 > 64000, which is the maximum allowed number of output tokens for"
    " claude-haiku-4-5-20251001"
)
ANSWER = raw(openai_stream(delta(content="Hi"), delta(finish="stop")))
CALL_AFTER_TEXT = [
    block(1, type="tool_use", id="t1", name="calculator", input={"expression": "1+1"}),
    {"type": "content_block_stop", "index": 1},
]
CALL = [
    block(0, type="tool_use", id="t1", name="calculator", input={"expression": "1+1"}),
    {"type": "content_block_stop", "index": 0},
]


def answered(
    route: Route, *, prompt: str = "Hi", is_limited: bool = False, **changes: Any
) -> tuple[RecordedRun, Answer]:
    """Answer the prompt on the route; `changes` are those of the persona."""
    chain = RouteChain([route], lambda route: providers.load(route, faults=False))
    context = RecordedRun()
    context.is_limited = is_limited
    agent = replace(agent_for(prompt, **changes), chain=chain)
    try:
        return context, run(agent, context)
    finally:
        chain.close()


def dropped(context: RecordedRun) -> list[RunSettingsDropped]:
    return [event for event in context.events if isinstance(event, RunSettingsDropped)]


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize(
    ("message", "most"),
    [
        (CLAUDES, 64_000),
        (
            "max_tokens is too large: 6000. This model supports at most 4096 completion tokens,"
            " whereas you provided 6000.",
            4_096,
        ),
        (
            "Invalid 'max_output_tokens': integer above maximum value. Expected a value <= 128000,"
            " but got 1000000 instead.",
            128_000,
        ),
        (
            "The parameter `max_completion_tokens` specified in the request are not valid: integer"
            " above maximum value, expected a value <= 12288, but got 32000 instead.",
            12_288,
        ),
        (
            "The maximum tokens you requested exceeds the model limit of 4096. Try again with a"
            " maximum tokens value that is lower than 4096.",
            4_096,
        ),
        (
            "Unable to submit request because it has a maxOutputTokens value of 65536 but the"
            " supported range is from 1 (inclusive) to 65536 (exclusive). Update the value and try",
            65_535,
        ),
        (
            "`max_tokens` must be less than or equal to `32768`, the maximum value for `max_tokens`"
            " is less than the `context_window` for this model",
            32_768,
        ),
        ("max_tokens for `llama-3.1-8b-instant` must be less than or equal to 8000", 8_000),
        ("Invalid max_tokens value, the valid range of max_tokens is [1, 8192]", 8_192),
        (
            "<400> InternalError.Algo.InvalidParameter: Range of max_tokens should be [1, 8192]",
            8192,
        ),
        ("max_tokens (384000) exceeds model's maximum output tokens (65536) for model m", 65_536),
        ("max_tokens: Input should be less than or equal to 8192", 8_192),
        ("Max tokens must be at most 4096", 4_096),
        ("maxTokens must be less than or equal to 4096", 4_096),
        ("max_tokens: 0 > 0, which is the maximum", None),
        ("max_tokens: Field required", None),
        ("max_tokens must be at least 1", None),
        ("messages: at most 100 images are supported", None),
        ("max_input_tokens must be less than or equal to 5", None),
        (
            "Unsupported parameter: 'max_tokens'; 'temperature' must be less than or equal to 1",
            None,
        ),
        ("temperature: 5 for max_tokens, n must be less than or equal to 1", None),
        ("tools.0.custom.input_schema: max_tokens must be less than or equal to 4096", None),
        ("messages.0.content: max_tokens must be less than or equal to 4096", None),
        ("`max_tokens` must be less than or equal to `max_model_len` 4096", None),
    ],
)
def test_the_models_most_is_read(provider: str, message: str, most: int | None) -> None:
    """One request is made, and the error says how long an answer may be."""
    for param in (None, "max_tokens"):
        error = refusal(provider, status("400 Bad Request", message=message, param=param))

        assert ("provider.invalid_request", most) == (error.code, error.most_output_tokens)
        assert error.too_large is None and not error.refuses_attachments


@pytest.mark.parametrize(
    "message",
    [
        "'max_tokens' or 'max_completion_tokens' is too large: 64000. This model's maximum context"
        " length is 64001 tokens and your request has 24235 input tokens (64000 > 64001 - 24235).",
        "input length and `max_tokens` exceed context limit: 190000 + 64000 > 200000",
    ],
)
def test_what_does_not_fit_with_the_input_is_of_the_context(message: str) -> None:
    """Another conversation may have the same output limit."""
    error = refusal("openai", status("400 Bad Request", message=message))

    assert error.too_large is not None
    assert error.most_output_tokens is None


def reasoning(maximum: int) -> str:
    """Return OpenRouter's words about a field of another name."""
    return (
        "Invalid 'reasoning.max_tokens': integer above maximum value. Expected a value <="
        f" {maximum}, but got 50000 instead."
    )


@pytest.mark.parametrize("param", [None, "reasoning.max_tokens"])
def test_the_limit_of_another_field_is_no_output_limit(param: str | None) -> None:
    """The call is made without the field."""
    settings = {"extra_body": {"reasoning": {"max_tokens": 50_000}}}
    refused = status("400 Bad Request", message=reasoning(32_000), param=param)
    with vendor(refused, ANSWER) as fake:
        route = route_to("openai", fake.url, api="chat", model_settings=settings)
        context, answer = answered(route, max_output_tokens=100_000)

    assert "Hi" == answer.content
    assert [100_000, 100_000] == [body["max_tokens"] for body in fake.bodies]
    assert [RunSettingsDropped(route.id, ["extra_body.reasoning"])] == dropped(context)


@pytest.mark.parametrize(
    ("param", "most"),
    [("max_tokens", 4_096), ("", 4_096), ("None", 4_096), ("n", None), ("stop.max_tokens", None)],
)
def test_the_parameter_that_the_vendor_names_counts(param: str, most: int | None) -> None:
    """The text may quote others; LiteLLM writes "None" where the vendor names none."""
    message = "max_tokens must be less than or equal to 4096"

    error = refusal("openai", status("400 Bad Request", message=message, param=param))

    assert most == error.most_output_tokens


def test_a_limit_that_is_refused_again_and_again_fails() -> None:
    """Each refusal names a maximum below the limit that was sent."""
    refused = [
        status("400 Bad Request", message=f"max_tokens must be less than or equal to {most}")
        for most in range(299, 289, -1)
    ]
    with vendor(*refused, status("401 Unauthorized")) as fake:
        route = route_to("openai", fake.url, api="chat")
        with pytest.raises(ProviderError, match="max_tokens must be"):
            answered(route, max_output_tokens=300)

    assert [300, 299, 298, 297] == [body["max_tokens"] for body in fake.bodies]


def test_a_lower_limit_than_the_services_own_is_not_reported() -> None:
    """The one that a budget needs was set by no person."""
    message = "max_tokens is too large: 4096. This model supports at most 2048 completion tokens."
    with vendor(status("400 Bad Request", message=message), ANSWER) as fake:
        context, answer = answered(route_to("openai", fake.url, api="chat"), is_limited=True)

    assert "Hi" == answer.content
    assert [4_096, 2_048] == [body["max_tokens"] for body in fake.bodies]
    assert [2_048] == [usage.output_tokens for _, usage in context.reserved[-1:]]
    assert [] == dropped(context)


def test_a_server_may_refuse_the_limit_of_anthropics_model() -> None:
    """A gateway may allow less than Anthropic: one refusal per run, and nothing to report."""
    message = (
        "max_tokens: 128000 > 64000, which is the maximum allowed number of output tokens for"
        " claude-sonnet-4-6"
    )
    called = raw(anthropic_stream(start(), *CALL, finish("tool_use")))
    done = raw(anthropic_stream(start(), *text(0, "2"), finish("end_turn")))
    with vendor(status("400 Bad Request", message=message), called, done) as fake:
        route = route_to("anthropic", fake.url, model="claude-sonnet-4-6")
        context, answer = answered(route)

    assert "2" == answer.content
    assert [128_000, 64_000, 64_000] == [body["max_tokens"] for body in fake.bodies]
    assert [] == dropped(context)


def test_a_lowered_limit_leaves_more_of_the_context() -> None:
    """What the model cannot write anyway needs no room beside the conversation."""
    message = CLAUDES.replace("64000", "2000")
    said = "word " * 6_000
    called = raw(anthropic_stream(start(), *text(0, said), *CALL_AFTER_TEXT, finish("tool_use")))
    done = raw(anthropic_stream(start(), *text(0, "2"), finish("end_turn")))
    with vendor(status("400 Bad Request", message=message), called, done) as fake:
        route = route_to("anthropic", fake.url, model="claude-haiku-4-5", context_tokens=16_000)
        context, answer = answered(route, max_output_tokens=100_000, prompt="Hi " * 3_500)

    assert "2" == answer.content
    assert not [event for event in context.events if isinstance(event, ContextTruncated)]
    assert said.strip() in str(fake.bodies[-1])


def test_a_fallback_with_a_lower_limit_takes_the_run_over() -> None:
    """The persona's limit is the first model's; all calls of the second have the second's."""
    refused = status("400 Bad Request", message=CLAUDES, kind="invalid_request_error")
    called = raw(anthropic_stream(start(), *CALL, finish("tool_use")))
    answered = raw(anthropic_stream(start(), *text(0, "2"), finish("end_turn")))
    with vendor(status("401 Unauthorized")) as first, vendor(refused, called, answered) as second:
        routes = [
            replace(route_to("openai", first.url), id="first"),
            replace(route_to("anthropic", second.url, model="claude-haiku-4-5"), id="second"),
        ]
        chain = RouteChain(routes, lambda route: providers.load(route, faults=False))
        agent = replace(agent_for("1+1?", max_output_tokens=100_000), chain=chain)
        context = RecordedRun()

        answer = run(agent, context)
        chain.close()

    assert "2" == answer.content
    assert [100_000, 64_000, 64_000] == [body["max_tokens"] for body in second.bodies]
    assert [RunSettingsDropped("second", ["max_output_tokens"])] == [
        event for event in context.events if isinstance(event, RunSettingsDropped)
    ]
    assert 1 == sum(isinstance(event, RunFallback) for event in context.events)


def test_a_model_that_refuses_its_own_limit_fails() -> None:
    """No request is repeated as it was."""
    refused = status("400 Bad Request", message=CLAUDES)
    with vendor(refused, refused) as fake:
        route = route_to("anthropic", fake.url, model="claude-haiku-4-5")
        chain = RouteChain([route], lambda route: providers.load(route, faults=False))
        with pytest.raises(ProviderError, match="the maximum allowed"):
            run(replace(agent_for("Hi", max_output_tokens=100_000), chain=chain), RecordedRun())
        chain.close()

    assert [100_000, 64_000] == [body["max_tokens"] for body in fake.bodies]
