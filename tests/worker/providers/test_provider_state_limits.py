"""State that vendors need again: how much of it is kept, and which vendor gets it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.types import ProviderState
from arkloop.worker import providers
from arkloop.worker.agent import context_window
from arkloop.worker.agent.conversation import Turn
from arkloop.worker.agent.model_call import call_model
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.contract.messages import (
    MAX_STATE_BYTES,
    AssistantMessage,
    Message,
    ToolMessage,
    TurnEnd,
    UserMessage,
    strip_provider_state,
)
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.providers import token_counts
from arkloop.worker.providers.scripted_provider import ScriptedProvider
from tests.worker.providers.fake_vendor import (
    delta,
    raw,
    status,
    vendor,
)
from tests.worker.providers.stateful_turns import (
    CALLS,
    DONE,
    ENDED,
    asked,
    blocks,
    chat,
    given_back,
    route_to,
    thinking,
    tool,
    used,
)
from tests.worker.recorded_run import RecordedRun, chain_of


class Ends(ScriptedProvider):
    """A model whose turn ends like this."""

    def __init__(self, end: TurnEnd) -> None:
        super().__init__()
        self._end = end

    def stream(self, *_: Any) -> Iterator[TurnEnd]:
        yield self._end


def kept(state: Any, *call_states: Any) -> ProviderState | None:
    run = RecordedRun()
    provider = Ends(TurnEnd("tool_calls", CALLS, None, state, call_states))
    return call_model(chain_of(provider), lambda _: asked(), run, run.stop).message.state


def test_what_cannot_be_stored_is_cleaned() -> None:
    """A vendor may send anything; the turn is worth more than its state."""
    found = kept({"reasoning": "a\ud800\x00"}, {"s": float("nan")}, None)

    assert found is not None
    assert ("scripted", "scripted-1") == (found.provider, found.model)
    assert ({"reasoning": "a\ufffd\ufffd"}, ({"s": "nan"}, None)) == (found.turn, found.calls)


def test_what_is_too_long_or_too_deep_is_not_kept() -> None:
    """All of it: half of it would be refused."""
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]

    assert kept("x" * (MAX_STATE_BYTES - 100)) is not None
    assert kept("x" * MAX_STATE_BYTES) is None
    assert kept("é" * (MAX_STATE_BYTES // 2)) is None
    assert kept("x", "x" * MAX_STATE_BYTES) is None
    assert kept(deep) is None


@pytest.mark.parametrize(
    ("provider", "answer"),
    [
        ("openai", chat(*[delta(reasoning="x" * 280_000)] * 4)),
        ("openai", chat(delta(reasoning_details=[{"data": "x" * 280_000}] * 4))),
        ("openai", chat(calls=[tool(0, CALLS[0], extra_content="x" * 1_100_000)])),
        ("anthropic", blocks(*[thinking("x", "s" * 280_000)] * 4, used(CALLS[0]))),
        ("anthropic", blocks(*[({"type": "redacted_thinking", "data": "x" * 1_100_000}, [])],
                             used(CALLS[0]))),
    ],
)  # fmt: skip
def test_a_vendor_that_wants_too_much_back_gets_none_of_it(provider: str, answer: bytes) -> None:
    """The call is as good as ever."""
    end, _ = given_back(provider, answer, DONE if provider == "openai" else ENDED)

    assert (None, ()) == (end.state, end.call_states)
    assert CALLS[:1] == end.tool_calls


def test_only_who_gave_it_gets_it_back() -> None:
    """The same server and model; others would refuse a foreign signature, or the very field."""
    route = Route(id="a", provider="openai", model="m", base_url="http://here/v1")
    state = ProviderState("openai", "m", {"reasoning": "so"}, (), route.server)
    said: list[Message] = [UserMessage("Hi"), AssistantMessage("", CALLS, state)]

    assert said == strip_provider_state(said, keep_for=replace(route, id="b"))
    for other in ({"model": "n"}, {"provider": "anthropic"}, {"base_url": "http://there/v1"}):
        bare = strip_provider_state(said, keep_for=replace(route, **other))
        assert [UserMessage("Hi"), AssistantMessage("", CALLS)] == bare


def test_a_server_that_refuses_what_it_has_sent_is_asked_without_it() -> None:
    """Once; what it refuses then is the request itself."""
    refused = status("400 Bad Request", message="property 'reasoning' is unsupported")
    run = RecordedRun()
    with vendor(refused, raw(DONE), refused, refused) as fake:
        route = route_to(fake, "openai")
        state = ProviderState("openai", "m", {"reasoning": "so"}, (), route.server)
        turn, result = AssistantMessage("", CALLS[:1], state), ToolMessage(CALLS[0].id, "f", "2")
        chain = RouteChain([route], lambda r: providers.load(r, faults=False, egress=None))

        reply = call_model(chain, lambda _: asked(turn, result), run, run.stop)
        with pytest.raises(ProviderError, match="is unsupported"):
            call_model(chain, lambda _: asked(turn, result), run, run.stop)

        chain.close()
        sent = ["so" in json.dumps(body) for body in fake.bodies]
    assert "2" == reply.message.content
    assert [True, False] * 2 == sent
    assert [] == run.paused


def test_a_turn_of_which_calls_were_lost_keeps_the_state_of_the_others() -> None:
    """Each call has its own."""
    results = {"b": ToolMessage("b", "current_time", "now")}
    turn = Turn("m", "", list(CALLS), results, state=ProviderState("openai", "m", None, (1, 2)))

    assert [
        AssistantMessage("", CALLS[1:], ProviderState("openai", "m", None, (2,))),
        results["b"],
    ] == turn.messages()
    assert [] == Turn("m", "", list(CALLS), state=turn.state).messages()


def test_it_counts_as_what_is_sent() -> None:
    """The state counts for the estimate, the worst case and what fits into the context."""
    bare = AssistantMessage("", CALLS)
    state = ProviderState("openai", "m", {"reasoning": "é" * 3000})
    with_state = AssistantMessage("", CALLS, state)
    plain, full = (replace(asked(message), max_output_tokens=1) for message in (bare, with_state))

    for count, least in (
        (lambda request: token_counts.estimate(request, "").input_tokens, 3000 // 4),
        (lambda request: token_counts.worst_case(request).input_tokens, 6000),
        (lambda request: context_window.tokens_of(request.messages[1]), 2000),
    ):
        assert count(full) - count(plain) >= least
    for name in ("openai", "anthropic"):
        provider = providers.load(Route(id="r", provider=name, model="m"), faults=False)
        assert provider.worst_case(full).input_tokens > 6000
        provider.close()
