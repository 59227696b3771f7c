"""A model call: what is passed on, what is tried again, what it is counted as."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from shared.events import Usage
from tests.worker.recorded_run import RecordedRun, request
from worker.messages import (
    AssistantMessage,
    Chunk,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    TurnEnd,
)
from worker.model_call import MAX_TRIES, MAX_TURN_CHARACTERS, call_model
from worker.outcomes import CancelRequested, ProviderError
from worker.providers import Provider
from worker.providers.scripted_provider import ScriptedProvider
from worker.stop_signal import StopSignal


class Replies(ScriptedProvider):
    """Says these chunks, one list a try; an exception among them is raised."""

    def __init__(self, *tries: Sequence[Chunk | BaseException]) -> None:
        super().__init__()
        self._tries = iter(tries)

    def stream(self, request: ModelRequest, stop: StopSignal) -> Iterator[Chunk]:
        for chunk in next(self._tries):
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk


def called(
    provider: Provider, run: RecordedRun, *messages: str
) -> tuple[AssistantMessage, TurnEnd, list[Usage]]:
    counted: list[Usage] = []
    try:
        reply, end = call_model(provider, request(*messages), run, run.stop, counted.append)
    finally:
        run.usage = sum(counted, Usage())
    return reply, end, counted


def scripted(*steps: dict[str, Any]) -> str:
    return json.dumps({"script": steps})


def test_a_turn_is_passed_on_as_it_comes() -> None:
    """Text and reasoning apart; the reply has the text and the calls."""
    run = RecordedRun()
    call = ToolCall("call_1_1", "t", {})
    message = scripted({"think": "a b"}, {"say": "c d"}, {"tool": "t"})

    reply, end, counted = called(ScriptedProvider(), run, message)

    assert AssistantMessage("c d", (call,)) == reply
    assert (["c ", "d"], ["a ", "b"]) == (run.streamed, run.thoughts)
    assert Usage(input_tokens=len(message.split()), output_tokens=4) == end.usage
    assert ([], [], []) == (counted, run.voided, run.paused)


def test_a_provider_that_reports_no_usage_is_estimated() -> None:
    """And it is said that it is an estimate."""
    provider = Replies([TextDelta("a b"), ThinkingDelta("c"), TurnEnd("stop")])

    _, end, _ = called(provider, RecordedRun(), "one two")

    assert Usage(input_tokens=2, output_tokens=2, source="estimated") == end.usage


@pytest.mark.parametrize("kind", ["rate_limited", "overloaded", "timeout", "connection"])
def test_a_failure_that_may_pass_is_tried_again(kind: str) -> None:
    """With growing pauses; nothing was streamed, so nothing is void."""
    run = RecordedRun()
    failure = [ProviderError(kind, "no")]
    provider = Replies(failure, failure, failure, [TextDelta("ok"), TurnEnd("stop")])

    reply, _, counted = called(provider, run)

    assert "ok" == reply.content
    assert [] == run.voided + counted
    for pause, expected in zip(run.paused, (0.5, 1, 2), strict=True):
        assert 0.75 * expected <= pause <= 1.25 * expected


@pytest.mark.parametrize(("asked", "paused"), [(0.05, 0.05), (7, 7), (3600, 30)])
def test_the_pause_is_what_the_provider_asks_for(asked: float, paused: float) -> None:
    """`Retry-After`, up to half a minute."""
    run = RecordedRun()
    failure = ProviderError("rate_limited", "slow down", retry_after=asked)

    called(Replies([failure], [TurnEnd("stop")]), run)

    assert [paused] == run.paused


def test_streamed_text_is_void_before_the_next_try() -> None:
    """Reasoning too; each try that broke off is counted by its estimate."""
    run = RecordedRun()
    lost = ProviderError("connection", "lost")
    provider = Replies(
        [TextDelta("a b "), lost], [ThinkingDelta("c"), lost], [TextDelta("d"), TurnEnd("stop")]
    )

    reply, _, counted = called(provider, run, "x")

    assert "d" == reply.content
    assert ["provider.connection"] * 2 == run.voided
    assert [
        Usage(input_tokens=1, output_tokens=2, source="estimated"),
        Usage(input_tokens=1, output_tokens=1, source="estimated"),
    ] == counted


def test_tries_are_spent_at_last() -> None:
    """Then the error is the run's; the text of the last try is not void, it is kept."""
    run = RecordedRun()
    provider = Replies(*[[TextDelta("a"), ProviderError("overloaded", "no")]] * MAX_TRIES)

    with pytest.raises(ProviderError, match="no"):
        called(provider, run, "x")

    assert (MAX_TRIES - 1, MAX_TRIES) == (len(run.voided), run.usage.output_tokens)


@pytest.mark.parametrize("kind", ["invalid_request", "auth"])
def test_a_failure_that_will_not_pass_is_not_tried_again(kind: str) -> None:
    """At once."""
    run = RecordedRun()

    with pytest.raises(ProviderError):
        called(Replies([ProviderError(kind, "no")]), run)

    assert [] == run.paused


def test_a_stream_that_ends_without_an_end_is_malformed() -> None:
    """A truncated answer does not pass for a whole one: it is tried again."""
    run = RecordedRun()

    reply, _, _ = called(Replies([TextDelta("a")], [TextDelta("b"), TurnEnd("stop")]), run)

    assert ("b", ["provider.malformed"]) == (reply.content, run.voided)


def test_a_stop_during_the_call_is_counted_and_raised() -> None:
    """What a cancelled call has used is not forgotten."""
    run = RecordedRun()
    provider = Replies([TextDelta("a b"), CancelRequested()])

    with pytest.raises(CancelRequested):
        called(provider, run, "x")

    assert Usage(input_tokens=1, output_tokens=2, source="estimated") == run.usage


def test_a_stop_during_the_pause_is_raised() -> None:
    """The run does not wait for the next try; the text so far stays."""
    run = RecordedRun()
    run.stop.set(CancelRequested())

    with pytest.raises(CancelRequested):
        called(Replies([TextDelta("a"), ProviderError("overloaded", "no")]), run)

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

    with pytest.raises(ProviderError, match="got too long"):
        called(Replies(*[endless] * MAX_TRIES), run, "")

    assert sum(map(len, run.streamed)) <= MAX_TRIES * MAX_TURN_CHARACTERS
