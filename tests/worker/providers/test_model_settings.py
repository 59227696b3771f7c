"""Model settings as each of the vendors' APIs receives them."""

from dataclasses import replace
from typing import Any

import pytest

from arkloop.worker import providers
from arkloop.worker.contract.messages import ToolSpec
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from tests.worker.providers.fake_vendor import (
    REQUEST,
    anthropic_stream,
    delta,
    openai_stream,
    raw,
    route_to,
    status,
    vendor,
)

TOOL = ToolSpec("calculator", "Calculates.", {"type": "object"})
SAMPLING = {"temperature": 0.5, "top_p": 0.9}
FORCED = {"tool_choice": {"name": "calculator"}, "parallel_tool_calls": False}
ANSWERS = {
    "chat": raw(openai_stream(delta(content="Hi"), delta("stop"))),
    "responses": raw(
        b'data: {"type": "response.completed", "response": {"status": "completed"}}\n\n'
    ),
    "messages": raw(
        anthropic_stream(
            {"type": "message_start", "message": {"role": "assistant", "usage": None}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {}},
        )
    ),
}


def sent(api: str, settings: dict[str, Any], *, model: str = "m", **fields: Any) -> dict[str, Any]:
    """Return the body of a call with these settings, without the fields that it always has."""
    request = replace(REQUEST, model=model, settings=settings, **fields)
    with vendor(ANSWERS[api]) as fake:
        is_openai = api != "messages"
        route = route_to(
            "openai" if is_openai else "anthropic",
            fake.url if is_openai else fake.url.removesuffix("/v1"),
            api=api if is_openai else None,
            model=model,
        )
        provider = providers.load(route, faults=False)
        list(provider.stream(request, StopSignal()))
        provider.close()
        [body] = fake.bodies
    always = {"model", "messages", "input", "instructions", "system", "stream", "stream_options"}
    return {
        name: value
        for name, value in body.items()
        if name not in always | {"store", "max_tokens", "tools", "include"}
    }


def test_without_settings_nothing_is_sent() -> None:
    """The vendors' defaults hold, as before."""
    assert {} == sent("chat", {})
    assert {"reasoning": {"summary": "auto"}} == sent("responses", {})
    assert {} == sent("messages", {})
    assert {} == sent("messages", {}, tools=[TOOL])


def test_chat_has_all_settings_under_their_own_names() -> None:
    """A named tool is a function there."""
    plain = {**SAMPLING, "seed": 7, "stop": ["END"], "reasoning_effort": "low", "verbosity": "low"}

    assert plain == sent("chat", plain)
    assert {
        "tool_choice": {"type": "function", "function": {"name": "calculator"}},
        "parallel_tool_calls": False,
    } == sent("chat", FORCED, tools=[TOOL])
    assert {"tool_choice": "required"} == sent("chat", {"tool_choice": "required"}, tools=[TOOL])


def test_responses_have_effort_and_verbosity_in_objects() -> None:
    """The summary of the reasoning is requested all the same."""
    settings = {**SAMPLING, "reasoning_effort": "none", "verbosity": "high"}
    expected = {
        **SAMPLING,
        "reasoning": {"effort": "none", "summary": "auto"},
        "text": {"verbosity": "high"},
    }

    assert expected == sent("responses", settings)
    forced = sent("responses", FORCED, model="gpt-4o", tools=[TOOL])
    assert {
        "tool_choice": {"type": "function", "name": "calculator"},
        "parallel_tool_calls": False,
    } == forced


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": "none", "parallel_tool_calls": False}, {"type": "none"}),
        (FORCED, {"type": "tool", "name": "calculator", "disable_parallel_tool_use": True}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        (
            {"tool_choice": "auto", "parallel_tool_calls": True},
            {"type": "auto", "disable_parallel_tool_use": False},
        ),
    ],
)
def test_anthropics_choice_of_tools(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    """Its words differ, and parallel calls are part of the choice."""
    assert {"tool_choice": expected} == sent("messages", settings, tools=[TOOL])
    assert {} == sent("messages", settings)


@pytest.mark.parametrize(
    ("model", "effort", "expected"),
    [
        ("claude-opus-5", "high", ("adaptive", "high")),
        ("claude-sonnet-4-6", "minimal", ("adaptive", "low")),
        ("anthropic.claude-opus-4-7-v1:0", "max", ("adaptive", "max")),
        ("claude-opus-5", "none", ("disabled", None)),
        ("claude-haiku-4-5", "none", ("disabled", None)),
        ("claude-haiku-4-5", "medium", ("enabled", 5_000)),
        ("claude-haiku-4-5-20251001", "minimal", ("enabled", 1_024)),
        ("us.anthropic.claude-sonnet-4-20250514-v1:0", "max", ("enabled", 9_500)),
        ("claude-3-7-sonnet-latest", "high", ("enabled", 8_000)),
    ],
)
def test_anthropics_thinking(model: str, effort: str, expected: tuple[str, Any]) -> None:
    """An effort for the models that decide themselves, a budget for those before.

    The first are asked for a summary of their thinking, which the others show by default.
    """
    kind, value = expected
    body: dict[str, Any] = {"thinking": {"type": kind}}
    if kind == "adaptive":
        body["thinking"]["display"] = "summarized"
        body["output_config"] = {"effort": value}
    elif kind == "enabled":
        body["thinking"]["budget_tokens"] = value

    settings = {"reasoning_effort": effort}
    assert body == sent("messages", settings, model=model, max_output_tokens=10_000)


def test_anthropics_thinking_may_be_omitted() -> None:
    """What `extra_body` says of it counts."""
    extra = {"thinking": {"display": "omitted"}}
    settings = {"reasoning_effort": "low", "extra_body": extra}

    body = sent("messages", settings, model="claude-opus-5")

    assert {"type": "adaptive", "display": "omitted"} == body["thinking"]


@pytest.mark.parametrize("model", ["claude-opus-5", "claude-haiku-4-5"])
@pytest.mark.parametrize(
    "thinking", [{"type": "disabled"}, {"type": "between_tools"}, {"type": "other", "n": 1}]
)
def test_anthropics_thinking_of_another_type(model: str, thinking: dict[str, Any]) -> None:
    """That of `extra_body` is sent alone: neither a `display` nor a budget is added."""
    settings = {"reasoning_effort": "low", "extra_body": {"thinking": thinking}}

    assert thinking == sent("messages", settings, model=model)["thinking"]


def test_a_budget_needs_room_in_the_output() -> None:
    """Without it the setting counts as refused, and no request is made."""
    settings = {"reasoning_effort": "low"}
    with pytest.raises(ProviderError) as caught:
        sent("messages", settings, model="claude-haiku-4-5", max_output_tokens=1_000)

    assert "reasoning_effort" == caught.value.refused_setting


def test_anthropic_gets_sampling_and_stops() -> None:
    """The SDK has no argument for them any more."""
    expected = {**SAMPLING, "stop_sequences": ["END"]}
    assert expected == sent("messages", {**SAMPLING, "stop": ["END"]})


@pytest.mark.parametrize("api", list(ANSWERS))
def test_extra_fields_are_added_to_the_body(api: str) -> None:
    """Objects that the service sends are completed, not replaced."""
    extra = {"service_tier": "flex", "reasoning": {"mode": "pro"}}
    settings = {"reasoning_effort": "low", "extra_body": extra}
    body = sent(api, settings, max_output_tokens=10_000)

    assert "flex" == body["service_tier"]
    ours = {"effort": "low", "summary": "auto"} if api == "responses" else {}
    assert {**ours, "mode": "pro"} == body["reasoning"]


@pytest.mark.parametrize("api", list(ANSWERS))
def test_a_refused_setting_is_named(api: str) -> None:
    """The text of the vendor's error names it, whichever API it is."""
    request = replace(REQUEST, settings=SAMPLING)
    with vendor(status("400 Bad Request", message="`top_p` is not supported.")) as fake:
        route = route_to(
            "anthropic" if api == "messages" else "openai",
            fake.url,
            api=None if api == "messages" else api,
        )
        provider = providers.load(route, faults=False)
        with pytest.raises(ProviderError) as caught:
            list(provider.stream(request, StopSignal()))
        provider.close()

    assert "top_p" == caught.value.refused_setting


@pytest.mark.parametrize(
    ("settings", "message", "fields"),
    [
        (
            {"extra_body": {"user": "x" * 90}},
            "litellm.BadRequestError: OpenAIException - Invalid 'user': string too long. Expected a"
            " string with maximum length 64, but got a string with length 90 instead.",
            {"error_code": "400"},
        ),
        (
            {"extra_body": {"prompt_cache_key": "x" * 90}},
            "Invalid 'prompt_cache_key': string too long. Expected a string with maximum length 64,"
            " but got a string with length 90 instead.",
            {"error_code": "string_above_max_length", "param": "prompt_cache_key"},
        ),
        (
            {"stop": ["a"] * 4},
            "Invalid 'stop': array too long. Expected an array with maximum length 3, but got an"
            " array with length 4 instead.",
            {"error_code": "array_above_max_length", "param": "stop"},
        ),
    ],
)
def test_a_setting_that_is_too_long_is_named(
    settings: dict[str, Any], message: str, fields: dict[str, Any]
) -> None:
    """The conversation is not: it stays as it is."""
    with vendor(status("400 Bad Request", message=message, **fields)) as fake:
        provider = providers.load(route_to("openai", fake.url), faults=False)
        with pytest.raises(ProviderError) as caught:
            list(provider.stream(replace(REQUEST, settings=settings), StopSignal()))
        provider.close()

    [name] = settings
    expected = name if name == "stop" else f"{name}.{next(iter(settings[name]))}"
    assert (expected, None) == (caught.value.refused_setting, caught.value.too_large)
