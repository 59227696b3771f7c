"""Structured output as each API receives it, and what follows where one refuses it.

Sources: `text.format` of https://developers.openai.com/api/reference/resources/responses,
`response_format` of https://developers.openai.com/api/reference/resources/chat, and
https://platform.claude.com/docs/en/build-with-claude/structured-outputs. Refusals are quoted from
https://github.com/langchain-ai/langchain/issues/31490 (OpenAI's older models),
https://github.com/agno-agi/agno/issues/2553 (a compatible server),
https://github.com/agentjido/req_llm/issues/302 and
https://github.com/Portkey-AI/gateway/issues/1570 (Anthropic and Vertex), and llama.cpp's
`common/chat.cpp` ("Cannot use custom grammar constraints with tools.").
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.types import RunSettingsDropped
from arkloop.worker import providers
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.agent.structured_output import OutputSchema
from arkloop.worker.contract.messages import ModelRequest
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers import responses_request
from arkloop.worker.providers.output_modes import FINAL_TOOL, OutputMode
from tests.worker.agent.looping_models import agent_for, run
from tests.worker.providers.anthropic_answers import block, finish, start
from tests.worker.providers.fake_vendor import (
    REQUEST,
    Answer,
    anthropic_stream,
    delta,
    openai_stream,
    raw,
    route_to,
    status,
    vendor,
)
from tests.worker.recorded_run import RecordedRun

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}
DRAFT = {"$schema": "http://json-schema.org/draft-07/schema#"}
OPEN = {**CITY, "additionalProperties": True}
SETTINGS = {"output_schema": CITY, "verbosity": "low", "reasoning_effort": "high"}


def sent_to(provider: str, schema: Mapping[str, Any] = CITY) -> dict[str, Any]:
    """Return the body of a call with the schema and other settings."""
    asked = replace(
        REQUEST, settings={**SETTINGS, "output_schema": schema}, max_output_tokens=9_000
    )
    with vendor(status("400 Bad Request")) as fake:
        client = providers.load(route_to(provider, fake.url), faults=False)
        with pytest.raises(ProviderError):
            list(client.stream(asked, StopSignal()))
        client.close()
    return fake.bodies[0]


@pytest.mark.parametrize(
    ("schema", "strict"), [(CITY, True), ({**DRAFT, **CITY}, True), (OPEN, False)]
)
def test_openai_gets_the_schema_as_it_is(schema: dict[str, Any], strict: bool) -> None:
    """Strict only where that changes nothing, alongside the other settings of the field."""
    output = {"name": "output", "schema": schema, "strict": strict}

    chat = sent_to("openai", schema)
    assert {"type": "json_schema", "json_schema": output} == chat["response_format"]
    asked = replace(REQUEST, settings={**SETTINGS, "output_schema": schema})
    text = responses_request.body(asked, is_vendor=True)["text"]
    assert {"verbosity": "low", "format": {"type": "json_schema", **output}} == text


@pytest.mark.parametrize("schema", [CITY, {**DRAFT, **CITY}])
def test_anthropic_gets_the_schema_as_it_is(schema: dict[str, Any]) -> None:
    """Alongside the effort, which is in the same field. `$schema` is no keyword that it knows."""
    assert {"effort": "high", "format": {"type": "json_schema", "schema": CITY}} == sent_to(
        "anthropic", schema
    )["output_config"]


@pytest.mark.parametrize(
    ("route", "schema", "without_tools", "with_tools"),
    [
        (Route(id="r", provider="openai", model="m"), OPEN, "native", "native"),
        (Route(id="r", provider="openai", model="m", api="chat"), OPEN, "native", "native"),
        (route_to("openai", "http://here/v1"), OPEN, "constrained", "tool"),
        (route_to("openai", "http://here/v1", api="responses"), OPEN, "constrained", "tool"),
        (Route(id="r", provider="anthropic", model="m"), CITY, "native", "native"),
        (Route(id="r", provider="anthropic", model="m"), {**DRAFT, **CITY}, "native", "native"),
        (Route(id="r", provider="anthropic", model="m"), OPEN, "tool", "tool"),
        (route_to("anthropic", "http://here"), CITY, "tool", "tool"),
    ],
)
def test_the_mode_is_that_of_the_server(
    route: Route, schema: dict[str, Any], without_tools: str, with_tools: str
) -> None:
    """The vendors' own servers, and compatible ones whose grammars forbid calls of tools."""
    provider = providers.load(replace(route, api_key="k"), faults=False)
    found = [provider.output_mode(schema, has_tools=has_tools) for has_tools in (False, True)]
    provider.close()

    assert [OutputMode(without_tools), OutputMode(with_tools)] == found


def final_call(*arguments: str) -> Answer:
    """Answer with a call of the final tool."""
    functions = [{"name": FINAL_TOOL, "arguments": piece} for piece in arguments]
    calls = [{"index": 0, "id": "c", "function": function} for function in functions]
    pieces = [delta(tool_calls=[call]) for call in calls]
    return raw(openai_stream(*pieces, delta(finish="tool_calls")))


REFUSALS = (
    (
        "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this"
        " model. Learn more about supported models at the Structured Outputs guide"
    ),
    (
        "The parameter `response_format.type` specified in the request are not valid: invalid"
        " value: `json_schema`, supported values are: `json_object` and `text`."
    ),
    "Cannot use custom grammar constraints with tools.",
)


@pytest.mark.parametrize("message", REFUSALS)
@pytest.mark.parametrize("param", [None, "response_format"])
def test_a_server_that_refuses_the_schema_gets_a_tool(message: str, param: str | None) -> None:
    """Once for the run: later calls have the tool at once. The answer is its arguments."""
    refused = status("400 Bad Request", message=message, param=param)
    with vendor(refused, final_call('{"name"', ": 1}"), final_call('{"name": "Rome"}')) as fake:
        route = route_to("openai", fake.url)
        chain = RouteChain([route], lambda route: providers.load(route, faults=False))
        agent = replace(agent_for("Which city?"), tools={}, chain=chain, output=OutputSchema(CITY))
        context = RecordedRun()

        answer = run(agent, context)
        chain.close()

    assert ({"name": "Rome"}, '{"name": "Rome"}') == (answer.output, answer.content)
    assert [RunSettingsDropped(route.id, ["output_schema"])] == [
        event for event in context.events if isinstance(event, RunSettingsDropped)
    ]
    first, *later = fake.bodies
    assert ("response_format" in first, "tools" in first) == (True, False)
    assert json.dumps(CITY) in first["messages"][0]["content"]
    for body in later:
        assert "response_format" not in body
        assert [CITY] == [tool["function"]["parameters"] for tool in body["tools"]]
    assert "must be of type string" in later[-1]["messages"][-1]["content"]


@pytest.mark.parametrize(
    "message",
    [
        "output_config.format: Extra inputs are not permitted",
        "output_format.schema: For 'integer' type, property 'minimum' is not supported",
        "Structured outputs are not supported by this model.",
    ],
)
def test_anthropics_refusals_are_understood(message: str) -> None:
    """The next call has the tool, and the effort is not taken for what was refused."""
    with vendor(status("400 Bad Request", message=message, kind="invalid_request_error")) as fake:
        provider = providers.load(route_to("anthropic", fake.url), faults=False)
        with pytest.raises(ProviderError) as caught:
            list(provider.stream(replace(REQUEST, settings=SETTINGS), StopSignal()))
        provider.close()

    assert "output_schema" == caught.value.refused_setting


@pytest.mark.parametrize(
    "message",
    [
        "Schemas contains too many parameters with union types (17 parameters with type arrays or"
        " anyOf).",
        "Schema is too complex for compilation.",
        "output_config: Extra inputs are not permitted",
    ],
)
def test_a_claude_that_refuses_the_schema_gets_a_tool(message: str) -> None:
    """The run has its output all the same."""
    call = [
        block(0, type="tool_use", id="t1", name=FINAL_TOOL, input={"name": "Rome"}),
        {"type": "content_block_stop", "index": 0},
    ]
    made = raw(anthropic_stream(start(), *call, finish("tool_use")))
    with vendor(status("400 Bad Request", message=message), made) as fake:
        route = route_to("anthropic", fake.url, model="claude-opus-4-6", platform="foundry")
        chain = RouteChain([route], lambda route: providers.load(route, faults=False))
        agent = replace(agent_for("Which city?"), tools={}, chain=chain, output=OutputSchema(CITY))

        answer = run(agent, RecordedRun())
        chain.close()

    assert {"name": "Rome"} == answer.output
    assert ["output_config" in body for body in fake.bodies] == [True, False]


def test_the_schema_is_counted() -> None:
    """It is sent, so it is in the estimate and in the worst case, by whichever way."""
    large = {**CITY, "description": "x" * 4_000}
    asked = ModelRequest(
        model="m", system_prompt="", messages=REQUEST.messages, max_output_tokens=1
    )
    provider = providers.load(route_to("openai", "http://here/v1"), faults=False)
    plain, with_schema = (
        provider.worst_case(request).input_tokens
        for request in (asked, replace(asked, settings={"output_schema": large}))
    )
    provider.close()

    assert 4_000 <= with_schema - plain
