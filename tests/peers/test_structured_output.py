"""Structured output from servers that we did not write, through the whole loop.

aimock answers as `aimock_fixtures.json` says, by the format or the tools that a request has; llmock
makes up an answer that fits the schema of the request.
"""

from dataclasses import replace
from typing import Any

import pytest
from llmock.pytest_plugin import LLMock

from arkloop.shared.events.types import MessageCompleted
from arkloop.worker import providers
from arkloop.worker.agent.loop import Answer
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.agent.structured_output import OutputSchema
from arkloop.worker.contract.messages import UserMessage
from tests.peers.calls import Server
from tests.worker.agent.looping_models import agent_for, run
from tests.worker.recorded_run import RecordedRun, history_of

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "districts": {"type": "array", "items": {"type": "string"}, "minItems": 2},
        "is_capital": {"type": "boolean"},
    },
    "required": ["name"],
    "additionalProperties": False,
}


def asked(server: Server, question: str, **changes: Any) -> tuple[Answer, RecordedRun]:
    """Run the loop for a city; returns its answer, and the run."""
    chain = RouteChain([server.route], lambda route: providers.load(route, faults=False))
    history, output = history_of(UserMessage(question)), OutputSchema(CITY)
    agent = replace(agent_for(**changes), chain=chain, history=history, output=output)
    context = RecordedRun()
    try:
        return run(agent, context), context
    finally:
        chain.close()


def rejected(context: RecordedRun) -> list[Any]:
    turns = [event for event in context.events if isinstance(event, MessageCompleted)]
    return [turn.output_errors for turn in turns if turn.output_errors]


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_llmock_follows_the_schema(llmock: LLMock, api: str) -> None:
    """It reads the schema where the vendor has it, and its output fits."""
    server = Server("openai", llmock.base_url("openai"), api=api)

    answer, context = asked(server, "Which city?", tools=())

    assert answer.output is not None and {"name"} <= answer.output.keys() <= {*CITY["properties"]}
    assert [] == rejected(context)


@pytest.mark.peers
@pytest.mark.parametrize("tools", [(), ("calculator",)])
def test_an_answer_of_aimock_is_repaired(aimock: str, tools: tuple[str, ...]) -> None:
    """Both `response_format` and the final tool, where the run has other tools, lead to it."""
    answer, context = asked(Server("openai", f"{aimock}/v1"), "broken city", tools=tools)

    assert {"name": "Rome"} == answer.output
    [errors] = rejected(context)
    assert {"Missing property 'name'.", "Unknown property 'town'."} == set(errors)


@pytest.mark.peers
def test_aimock_answers_by_the_final_tool(aimock: str) -> None:
    """Servers that are compatible with Anthropic get it, whether the run has tools or not."""
    answer, context = asked(Server("anthropic", aimock), "broken city", tools=())

    assert ({"name": "Rome"}, 1) == (answer.output, len(rejected(context)))
