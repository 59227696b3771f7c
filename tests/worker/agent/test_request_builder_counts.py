"""Requests that are bounded by what a vendor has counted for earlier requests of the thread."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from arkloop.shared.events.usage import Usage
from arkloop.worker.agent.agent import Agent
from arkloop.worker.agent.conversation import Counted, Turn
from arkloop.worker.agent.request_builder import RequestBuilder
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Message,
    ModelRequest,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from arkloop.worker.providers import token_counts
from tests.worker.agent.looping_models import Model, after, agent_for, run
from tests.worker.recorded_run import ROUTE, RecordedRun, chain_of


@pytest.mark.parametrize(
    ("called", "messages"),
    [((ROUTE.id, ROUTE.model), 1), ((ROUTE.id, "other"), 0), (("other", ROUTE.model), 0)],
    ids=["same", "other_model", "other_route"],
)
def test_the_count_of_another_model_bounds_nothing(called: tuple[str, str], messages: int) -> None:
    """The model of a route has changed since the count, and counts the same text differently."""
    model = Model()
    agent = after(agent_for({"say": "ok"}), UserMessage("word " * 100), AssistantMessage("Yes."))
    history = replace(agent.history, counted=Counted(150, (2, 1), called))
    agent = replace(agent, history=history, chain=chain_of(model))

    run(agent, RecordedRun())

    assert messages == model.requests[0].counted_messages


#: Four results of about 21,000 tokens each: cut, they take what a turn's results may have.
LONG_TURN = Turn(
    "m1",
    "",
    [ToolCall(f"c{i}", "t", {}) for i in range(4)],
    {f"c{i}": ToolMessage(f"c{i}", "t", "word " * 12_800) for i in range(4)},
    seq=2,
)
SHORT_TURN = Turn(
    "m2", "", [ToolCall("d", "t", {})], {"d": ToolMessage("d", "t", "ok", seq=4)}, seq=3
)
LONG_CONTEXT = replace(ROUTE, context_tokens=128_000)


def by_model(model: Model, **persona: Any) -> Agent:
    agent = agent_for({"say": "ok"}, **persona)
    return replace(agent, chain=RouteChain([LONG_CONTEXT], lambda _route: model))


def tokens_of(request: ModelRequest) -> int:
    """Count as a vendor of four characters a token does."""
    return sum(len(text) for text in token_counts._texts(request)) // 4


def test_results_are_cut_alike_once_the_model_has_refused_the_output_limit() -> None:
    """The next request begins with the one that the vendor has counted, whose count bounds it."""
    agent = by_model(Model(), max_output_tokens=64_000)
    turns = [LONG_TURN]
    builder, chain = RequestBuilder(agent, RecordedRun(), turns), agent.chain
    counted = builder.build(chain.route)
    chain.lower_output(16_384)
    usage = Usage(input_tokens=tokens_of(counted), output_tokens=1)
    builder.measured(chain.route, chain.allowed(counted), usage)
    turns.append(SHORT_TURN)

    request = builder.build(chain.route)

    assert counted.messages == request.messages[: len(counted.messages)]
    assert token_counts.worst_case(request).input_tokens >= tokens_of(request)


def test_results_are_cut_alike_in_a_run_with_a_lower_output_limit() -> None:
    """A run may lower the limit of its persona; the count of the run before it bounds it."""
    earlier = by_model(Model(), max_output_tokens=64_000)
    counted = RequestBuilder(earlier, RecordedRun(), [LONG_TURN]).build(LONG_CONTEXT)
    question = earlier.history.messages
    agent = after(by_model(Model(), max_output_tokens=1_000), *question, *LONG_TURN.messages())
    called = (ROUTE.id, ROUTE.model)
    history = replace(agent.history, counted=Counted(tokens_of(counted), (3, 1), called))

    request = RequestBuilder(replace(agent, history=history), RecordedRun(), []).build(LONG_CONTEXT)

    assert 6 == request.counted_messages
    assert token_counts.worst_case(request).input_tokens >= tokens_of(request)


def in_context(tokens: int, messages: Sequence[Message]) -> Agent:
    """Build an agent whose model has a context of this size, in a thread with these messages."""
    agent = after(agent_for({"say": "ok"}, max_output_tokens=1_000), *messages)
    route = replace(ROUTE, context_tokens=tokens)
    return replace(agent, chain=RouteChain([route], lambda _route: Model()))


#: A thread of about 70,000 tokens, as our vendor counts them.
TALK = [
    message
    for number in range(28)
    for message in (UserMessage(f"{number} " + "word " * 1_500), AssistantMessage("word " * 500))
]


@pytest.mark.parametrize(
    ("talk", "own"), [(TALK, []), ([], [LONG_TURN])], ids=["truncated", "cut_results"]
)
def test_a_count_of_less_does_not_bound_what_a_larger_context_has(
    talk: Sequence[Message], own: list[Turn]
) -> None:
    """The route's context has grown since the count: more messages fit, and more of the results."""
    before = in_context(64_000, talk)
    counted = tokens_of(RequestBuilder(before, RecordedRun(), own).build(before.chain.route))
    said = [*before.history.messages, *(message for turn in own for message in turn.messages())]
    agent = in_context(200_000, [*said, AssistantMessage("The answer.")])
    count = Counted(counted, agent.history.entries[-2].place, (ROUTE.id, ROUTE.model))
    agent = replace(agent, history=replace(agent.history, counted=count))

    request = RequestBuilder(agent, RecordedRun(), []).build(agent.chain.route)

    most = token_counts.worst_case(request).input_tokens
    assert tokens_of(request) > 1.5 * counted
    assert tokens_of(request) <= most
    # A token for each byte would be far more than a budget may have left.
    assert most < token_counts.worst_case(replace(request, counted_messages=0)).input_tokens / 2
