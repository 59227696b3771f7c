"""A model call: what is passed on, what is tried again, what it is counted as."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.types import RunCost, RunFallback, RunRetrying
from arkloop.shared.events.usage import Usage
from arkloop.worker.agent.model_call import (
    DEFAULT_OUTPUT_TOKENS,
    LEAST_OUTPUT_TOKENS,
    MAX_TURN_CHARACTERS,
    bounded,
    call_model,
)
from arkloop.worker.agent.retry import MAX_RETRY_AFTER_SECONDS, MAX_TRIES
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.contract import retry_deadline
from arkloop.worker.contract.messages import (
    AssistantMessage,
    CallDelta,
    Chunk,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    TurnEnd,
)
from arkloop.worker.contract.outcomes import CancelRequested, ProviderError, TooLarge
from arkloop.worker.contract.retry_deadline import (
    LAST_ROUTE_SECONDS,
    OTHER_ROUTE_SECONDS,
    RetryDeadline,
)
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers import Provider
from arkloop.worker.providers.scripted_provider import ScriptedProvider
from tests.worker.agent.called_models import Replies, called, costs
from tests.worker.recorded_run import RecordedRun, chain_of, request


def retries(run: RecordedRun) -> list[RunRetrying]:
    return [event for event in run.events if isinstance(event, RunRetrying)]


def scripted(*steps: dict[str, Any]) -> str:
    return json.dumps({"script": steps})


def test_a_turn_is_passed_on_as_it_comes() -> None:
    """Text and reasoning apart; the reply has the text, the calls, and what it cost."""
    run = RecordedRun()
    call = ToolCall("call_1_1", "t", {})
    message = scripted({"think": "a b"}, {"say": "c d"}, {"tool": "t"})

    reply = called(run, ScriptedProvider(), say=message)

    assert AssistantMessage("c d", (call,)) == reply.message
    assert (["c ", "d"], ["a ", "b"]) == (run.streamed, run.thoughts)
    assert Usage(input_tokens=len(message.split()), output_tokens=4) == reply.usage == run.usage
    assert isinstance(reply.cost, RunCost)
    assert ([], [], [], "tool_calls") == (run.events, run.voided, run.paused, reply.end.stop_reason)


@pytest.mark.parametrize("kind", ["rate_limited", "overloaded"])
def test_a_failure_that_may_pass_is_tried_again(kind: str) -> None:
    """A transient failure is retried with growing pauses; without streamed text it costs
    nothing.
    """
    run = RecordedRun()
    failure = [ProviderError(kind, "no")]
    provider = Replies(failure, failure, failure, [TextDelta("ok"), TurnEnd("stop")])

    reply = called(run, provider)

    assert "ok" == reply.message.content
    assert [] == run.voided
    retried = [(event.code, event.try_number, event.seconds) for event in retries(run)]
    expected = [(f"provider.{kind}", i + 2, round(p, 3)) for i, p in enumerate(run.paused)]
    assert (expected if kind == "overloaded" else []) == retried
    for pause, expected in zip(run.paused, (0.5, 1, 2), strict=True):
        assert 0.75 * expected <= pause <= 1.25 * expected
    assert (run.paused if kind == "rate_limited" else []) == run.backed_off


def test_a_provider_that_has_too_much_to_do_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """An overloaded provider without a fallback is waited for longer than a broken one; other runs
    pause, too, and may spend the money that the call might have cost.
    """
    run = RecordedRun()
    monkeypatch.setattr(retry_deadline, "monotonic", lambda: sum(run.paused))
    busy = [ProviderError("rate_limited", "slow down", retry_after=30)]
    waits = int(LAST_ROUTE_SECONDS / 30)

    with pytest.raises(ProviderError, match="slow down"):
        called(run, Replies(*[busy] * (waits + 1)))

    assert [30] * waits == run.backed_off
    assert waits == run.settled


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("has_next", [False, True])
def test_everybody_waits_only_where_the_accounts_limit_is_exhausted(
    is_shared: bool, has_next: bool
) -> None:
    """Any other 429 concerns the runs of the org whose request was refused."""
    run = RecordedRun()
    busy = [ProviderError("rate_limited", "no", retry_after=10, is_shared=is_shared)]
    done = [TurnEnd("stop")]

    called(run, *([Replies(busy), Replies(done)] if has_next else [Replies(busy, done)]))

    assert [is_shared] == run.shared_pauses


TOO_LARGE = ProviderError("invalid_request", "too large", too_large=TooLarge(is_per_minute=True))


#: A limit of 10 tokens per minute is not used at all; the request of these tests has 12.
IDLE = ProviderError("rate_limited", "no", retry_after=30, idle_tokens=10)


@pytest.mark.parametrize("refused", [TOO_LARGE, IDLE], ids=["in words", "by its headers"])
def test_a_request_that_can_never_fit_is_not_waited_for(refused: ProviderError) -> None:
    """The next route may have a larger limit; without one the run fails, and nobody waits."""
    run = RecordedRun()
    long = "word " * 12

    called(run, Replies([refused]), Replies([TurnEnd("stop")]), say=long)
    with pytest.raises(ProviderError) as failed:
        called(run, Replies([refused]), say=long)

    assert ["scripted-2"] == [e.to_route_id for e in run.events if isinstance(e, RunFallback)]
    assert "provider.invalid_request" == failed.value.code
    assert [] == run.paused + run.backed_off + run.told_others


def test_a_request_that_fits_into_an_idle_limit_is_tried_again() -> None:
    """A request that fits into an unused limit is retried, since something else refused it."""
    run = RecordedRun()

    called(run, Replies([IDLE], [TurnEnd("stop")]), say="one two")

    assert [30] == run.backed_off


def test_what_is_waited_for_is_no_try() -> None:
    """A provider that breaks after many refusals is tried as often as any other."""
    run = RecordedRun()
    busy = [ProviderError("rate_limited", "slow down", retry_after=0.01)]
    broken = [ProviderError("overloaded", "broken")]
    refusals = MAX_TRIES + 1

    called(run, Replies(*[busy] * refusals, *[broken] * (MAX_TRIES - 1), [TurnEnd("stop")]))

    assert refusals == len(run.backed_off)


def test_streamed_text_is_void_before_the_next_try() -> None:
    """Text and reasoning of a broken try are void; its estimated cost is stored with the reset."""
    run = RecordedRun()
    lost = ProviderError("connection", "lost")
    provider = Replies(
        [TextDelta("a b "), lost], [ThinkingDelta("c"), lost], [TextDelta("d"), TurnEnd("stop")]
    )

    reply = called(run, provider)

    assert "d" == reply.message.content
    assert ["provider.connection"] * 2 == run.voided
    assert [2, 3] == [cost.usage.output_tokens for cost in costs(run)]
    assert Usage(input_tokens=3, output_tokens=4, source="estimated") == run.usage


def test_arguments_are_streamed_under_the_id_of_their_call() -> None:
    """An id that an earlier turn has is replaced from the first piece on; one that comes late,
    or in the call of a broken try, changes nothing.
    """
    run = RecordedRun()
    lost = ProviderError("connection", "lost")
    calls = (ToolCall("late", "f", {}), ToolCall("call_1", "g", {"x": 1}))
    tries = Replies(
        [CallDelta('{"x"', 0, "call_1", "g"), lost],
        [
            CallDelta("{", 0, "", "f"),
            CallDelta('{"x":', 1, "call_1", "g"),
            CallDelta("}", 0, "late", "f"),
            CallDelta("", 2, "unused", "h"),
            CallDelta(" 1}", 1, "call_1", "g"),
            TurnEnd("tool_calls", calls),
        ],
    )
    asked = request("x", turn=1, stream_arguments=True, taken_call_ids=frozenset({"call_1"}))

    reply = call_model(chain_of(tries), lambda route: asked, run, run.stop)

    streamed = [("call_2_1", "f", "{"), ("call_2_2", "g", '{"x":'), ("call_2_1", "f", "}")]
    assert [("call_2_1", "g", '{"x"'), *streamed, ("call_2_2", "g", " 1}")] == run.arguments
    assert ["provider.connection"] == run.voided
    assert reply.message.tool_calls == (
        ToolCall("call_2_1", "f", {}),
        ToolCall("call_2_2", "g", {"x": 1}),
    )


def test_tries_are_spent_at_last() -> None:
    """After the last try the run fails with its error and keeps the last try's text."""
    run = RecordedRun()
    provider = Replies(*[[TextDelta("a"), ProviderError("overloaded", "no")]] * MAX_TRIES)

    with pytest.raises(ProviderError, match="no"):
        called(run, provider)

    assert (MAX_TRIES - 1, MAX_TRIES) == (len(run.voided), run.usage.output_tokens)


def test_a_route_that_stays_broken_falls_back() -> None:
    """Before the first token only the event shows it; the next route takes over from there."""
    run = RecordedRun()
    broken = Replies(*[[ProviderError("overloaded", "no")]] * MAX_TRIES)

    reply = called(run, broken, Replies([TextDelta("ok"), TurnEnd("stop")]))

    assert ("ok", []) == (reply.message.content, run.voided)
    *retried, fallback = run.events
    assert (MAX_TRIES - 1, retries(run)) == (len(retried), retried)
    expected = RunFallback("scripted", "scripted-2", "scripted-1", "provider.overloaded")
    assert expected == fallback
    assert ["scripted"] * MAX_TRIES + ["scripted-2"] == [route for route, _ in run.admitted]
    assert ["scripted-2"] == [part.route_id for part in run.totals.routes]


def test_what_a_broken_route_has_said_is_void_before_the_next_one() -> None:
    """Reset, what it cost, then the event: each route has its own part of the sum."""
    run = RecordedRun()
    broken = Replies(*[[TextDelta("a"), ProviderError("connection", "no")]] * MAX_TRIES)

    reply = called(run, broken, Replies([TextDelta("ok"), TurnEnd("stop")]))

    assert ("ok", MAX_TRIES) == (reply.message.content, len(run.voided))
    again = [RunRetrying, RunCost] * (MAX_TRIES - 1)
    assert [*again, RunCost, RunFallback] == [type(event) for event in run.events]
    used = {part.route_id: part.usage.output_tokens for part in run.totals.routes}
    assert {"scripted": MAX_TRIES, "scripted-2": 1} == used


def test_who_was_not_let_in_in_time_goes_on_elsewhere_at_once() -> None:
    """A pause that no provider has requested is not shared."""

    class Shut(RecordedRun):
        def admit(self, route: Route, tokens: int, deadline: RetryDeadline) -> None:
            super().admit(route, tokens, deadline)
            if route.id == "scripted" and not deadline.allows(OTHER_ROUTE_SECONDS + 1):
                raise ProviderError("rate_limited", "shut")

    run = Shut()

    called(run, Replies(), Replies([TurnEnd("stop")]))

    assert ["scripted", "scripted-2"] == [route for route, _ in run.admitted]
    assert [] == run.backed_off + run.told_others + run.paused


@pytest.mark.parametrize(("pause", "waits"), [(2, 2), (3600, 0)])
def test_a_busy_route_does_not_hold_up_a_run_that_has_another(
    monkeypatch: pytest.MonkeyPatch, pause: float, waits: int
) -> None:
    """It is waited for only for seconds, and not at all if it asks for more of them."""
    run = RecordedRun()
    monkeypatch.setattr(retry_deadline, "monotonic", lambda: sum(run.paused))
    busy = Replies(*[[ProviderError("rate_limited", "no", retry_after=pause)]] * (waits + 1))

    called(run, busy, Replies([TurnEnd("stop")]))

    assert [pause] * waits == run.backed_off
    assert [min(pause, MAX_RETRY_AFTER_SECONDS)] == run.told_others  # also who does not wait
    assert sum(run.backed_off) <= OTHER_ROUTE_SECONDS
    assert waits + 1 == run.settled
    [fallback] = run.events
    assert "provider.rate_limited" == fallback.reason


def test_a_limited_run_reserves_each_try_and_has_a_bound() -> None:
    """What the try may cost at most; without a bound of persona or route there is ours."""
    run = RecordedRun()
    run.is_limited = True
    sent: list[ModelRequest] = []

    class Watched(Replies):
        def stream(self, request: ModelRequest, stop: StopSignal) -> Iterator[Chunk]:
            sent.append(request)
            return super().stream(request, stop)

    called(run, Watched([ProviderError("overloaded", "no")], [TurnEnd("stop")]))

    assert 2 == len(run.reserved)
    assert [DEFAULT_OUTPUT_TOKENS] * 2 == [request.max_output_tokens for request in sent]


@pytest.mark.parametrize(
    ("room", "most"), [(2000, 2000), (9000, DEFAULT_OUTPUT_TOKENS), (-5, LEAST_OUTPUT_TOKENS)]
)
def test_our_bound_is_what_the_context_leaves(room: int, most: int) -> None:
    """Servers refuse one that is beyond a small context."""
    run = RecordedRun()
    run.is_limited = True

    assert most == bounded(request("x", remaining_tokens=room), run).max_output_tokens
    assert (
        7
        == bounded(request("x", remaining_tokens=room, max_output_tokens=7), run).max_output_tokens
    )


@pytest.mark.parametrize(
    ("reason", "last"),
    [
        ("length", ""),
        ("content_filter", ""),
        ("model_length", ""),  # Mistral's
        ("MAX_TOKENS", ""),  # Google's
        ("tool_calls", {}),
        ("STOP", {}),
    ],
)
def test_a_call_that_was_cut_off_is_not_made_without_its_arguments(reason: str, last: Any) -> None:
    """Nobody knows what they would have been; those of calls before it are whole."""
    calls = (ToolCall("a", "t", {}), ToolCall("b", "t", {}))

    reply = called(RecordedRun(), Replies([TurnEnd(reason, calls)]))

    assert [{}, last] == [call.arguments for call in reply.message.tool_calls]
    assert reply.message.tool_calls == reply.end.tool_calls


def test_a_stream_that_ends_without_an_end_is_malformed() -> None:
    """A truncated answer does not pass for a whole one: it is tried again."""
    run = RecordedRun()

    reply = called(run, Replies([TextDelta("a")], [TextDelta("b"), TurnEnd("stop")]))

    assert ("b", ["provider.malformed"]) == (reply.message.content, run.voided)


def test_a_stop_during_the_call_is_counted_and_raised() -> None:
    """What a cancelled call has used is not forgotten."""
    run = RecordedRun()

    with pytest.raises(CancelRequested):
        called(run, Replies([TextDelta("a b"), CancelRequested()]))

    assert Usage(input_tokens=1, output_tokens=2, source="estimated") == run.usage


def test_a_stop_during_the_pause_is_raised() -> None:
    """The run does not wait for the next try; the text so far stays."""
    run = RecordedRun()
    run.stop.set(CancelRequested())

    with pytest.raises(CancelRequested):
        called(run, Replies([TextDelta("a"), ProviderError("overloaded", "no")]))

    assert [] == run.voided


@pytest.mark.parametrize(
    "endless",
    [
        [TextDelta("x" * 1_000_000)] * 5,
        [ThinkingDelta("x" * 1_000_000)] * 5,
        [TurnEnd("tool_calls", (ToolCall("c", "t", {"x": "y" * 2_000_000}),), Usage())],
        [TurnEnd("tool_calls", (ToolCall("c", "t", "no JSON" * 300_000),), Usage())],
    ],
)
def test_a_turn_that_is_far_too_long_is_malformed(endless: list[Chunk]) -> None:
    """No event could hold it; the run fails with a code of its own and the worker lives."""
    run = RecordedRun()

    with pytest.raises(ProviderError, match="exceeded"):
        called(run, Replies(*[endless] * MAX_TRIES))

    assert sum(map(len, run.streamed)) <= MAX_TRIES * MAX_TURN_CHARACTERS


def test_a_chain_knows_the_largest_context_of_its_routes() -> None:
    """A history is read for the one that holds most; a context that is not known has no bound."""
    chain = chain_of(Replies(), Replies(), Replies())
    small, large = (replace(chain.route, context_tokens=tokens) for tokens in (1000, 9000))

    def connect(route: Route) -> Provider:
        raise AssertionError(route.id)

    assert 9000 == RouteChain([small, large], connect).context_tokens
    assert None is RouteChain([small, chain.route], connect).context_tokens
