"""Model settings as each of the vendors' APIs receives them."""

from dataclasses import replace
from typing import Any

import pytest

from arkloop.shared.events.types import RunSettingsDropped
from arkloop.worker import providers
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.agent.structured_output import OutputSchema
from arkloop.worker.contract.messages import ToolSpec
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from tests.worker.agent.looping_models import agent_for, run
from tests.worker.providers.anthropic_answers import block, finish, start, text
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
from tests.worker.recorded_run import RecordedRun

TOOL = ToolSpec("calculator", "Calculates.", {"type": "object"})
#: Claudes that think with a budget, as platforms name them.
BY_BUDGET = [
    "claude-3-7-sonnet-latest",
    "us.anthropic.claude-sonnet-4-20250514-v1:0",
    "claude-sonnet-4@20250514",
    "claude-haiku-4-5@20251001",
    "anthropic/claude-haiku-4.5",
    "anthropic/claude-opus-4",
]
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
        *((model, "high", ("enabled", 8_000)) for model in BY_BUDGET),
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


@pytest.mark.parametrize(
    ("model", "thinks"),
    [
        ("claude-sonnet-4-6", False),
        ("anthropic/claude-opus-4.6", False),
        ("claude-opus-4-7", False),
        ("claude-opus-4-8", True),
        ("claude-opus-5", True),
    ],
)
@pytest.mark.parametrize("choice", ["required", {"name": "calculator"}, "auto"])
def test_the_first_claudes_with_an_effort_do_not_think_where_a_tool_is_forced(
    model: str, thinks: bool, choice: Any
) -> None:
    """They refuse both together; the effort is sent."""
    settings = {"reasoning_effort": "high", "tool_choice": choice}

    body = sent("messages", settings, model=model, tools=[TOOL], max_output_tokens=10_000)

    assert (thinks or choice == "auto") == ("thinking" in body)
    assert {"effort": "high"} == body["output_config"]


@pytest.mark.parametrize("choice", ["required", {"name": "calculator"}])
@pytest.mark.parametrize("model", BY_BUDGET)
def test_claudes_with_a_budget_do_not_think_in_a_turn_that_a_forced_call_begins(
    model: str, choice: Any
) -> None:
    """Later calls of the turn are refused as well, so the effort is dropped before the first."""
    settings = {"reasoning_effort": "high", "tool_choice": choice}
    with vendor(status("400 Bad Request")) as fake:
        provider = providers.load(route_to("anthropic", fake.url, model=model), faults=False)
        request = replace(REQUEST, model=model, tools=[TOOL], settings=settings)
        with pytest.raises(ProviderError, match="does not think") as raised:
            list(provider.stream(request, StopSignal()))
        provider.close()

    assert "reasoning_effort" == raised.value.refused_setting
    assert [] == fake.bodies
    settings = {"tool_choice": choice, "extra_body": {"thinking": {"type": "disabled"}}}
    assert {"type": "disabled"} == sent("messages", settings, model=model, tools=[TOOL])["thinking"]


@pytest.mark.parametrize("model", ["claude-haiku-4-5", "claude-opus-4-6"])
def test_an_effort_is_reported_as_dropped_where_the_final_tool_is_always_forced(model: str) -> None:
    """No call of the run could think."""
    call = {"type": "tool_use", "id": "t", "name": "final_answer", "input": {"name": "Rome"}}
    answered = anthropic_stream(start(), block(0, **call), finish("tool_use"))
    schema = {"type": "object", "properties": {"name": {"type": "string", "minLength": 3}}}
    with vendor(raw(answered)) as fake:
        route = route_to("anthropic", fake.url, model=model)
        chain = RouteChain([route], lambda route: providers.load(route, faults=False))
        settings = {"reasoning_effort": "high", "tool_choice": "none"}
        agent = agent_for("Where?", model_settings=settings)
        context = RecordedRun()
        answer = run(replace(agent, chain=chain, output=OutputSchema(schema)), context)
        chain.close()

    assert {"name": "Rome"} == answer.output
    assert ["tool"] == [body["tool_choice"]["type"] for body in fake.bodies]
    assert [RunSettingsDropped(route.id, ["reasoning_effort"])] == [
        event for event in context.events if isinstance(event, RunSettingsDropped)
    ]


def test_a_claude_thinks_again_after_a_forced_call() -> None:
    """No setting of the run is dropped for its first call."""
    call = {"type": "tool_use", "id": "t", "name": "calculator", "input": {"expression": "1+1"}}
    called = anthropic_stream(start(), block(0, **call), finish("tool_use"))
    answered = anthropic_stream(start(), *text(0, "2"), finish("end_turn"))
    with vendor(raw(called), raw(answered)) as fake:
        route = route_to("anthropic", fake.url, model="claude-opus-4-6")
        chain = RouteChain([route], lambda route: providers.load(route, faults=False))
        settings = {"reasoning_effort": "high", "tool_choice": "required"}
        context = RecordedRun()
        run(replace(agent_for("1+1?", model_settings=settings), chain=chain), context)
        chain.close()

    assert [None, "adaptive"] == [body.get("thinking", {}).get("type") for body in fake.bodies]
    assert [{"effort": "high"}] * 2 == [body["output_config"] for body in fake.bodies]
    assert not any(isinstance(event, RunSettingsDropped) for event in context.events)


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
