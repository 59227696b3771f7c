"""Costs of model calls that report no usage, or that break off."""

from dataclasses import replace

import pytest

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.types import ContextCompacted
from arkloop.shared.events.usage import Usage
from arkloop.worker.agent.model_call import call_model
from arkloop.worker.agent.retry import MAX_TRIES
from arkloop.worker.contract.messages import (
    CallDelta,
    Chunk,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    TurnEnd,
    UsageUpdate,
)
from arkloop.worker.contract.outcomes import CancelRequested, ProviderError, TooLarge
from arkloop.worker.testing.memory_run import MemoryRun
from tests.worker.agent.called_models import Replies, called, costs
from tests.worker.recorded_run import RecordedRun, chain_of, request


def test_a_provider_that_reports_no_usage_is_estimated() -> None:
    """The usage of a provider that reports none is estimated, and marked as an estimate."""
    provider = Replies([TextDelta("a b"), ThinkingDelta("c"), TurnEnd("stop")])

    reply = called(RecordedRun(), provider, say="one two")

    assert Usage(input_tokens=2, output_tokens=2, source="estimated") == reply.usage


def test_what_a_provider_did_report_is_not_estimated() -> None:
    """It has counted the input, and not the output."""
    told = UsageUpdate(Usage(input_tokens=70, cache_read_tokens=30))
    provider = Replies([told, TextDelta("a b"), TurnEnd("stop")])

    reply = called(RecordedRun(), provider, say="one two")

    assert reply.usage == Usage(
        input_tokens=70, output_tokens=2, cache_read_tokens=30, source="estimated"
    )


def test_a_call_of_a_tool_that_breaks_off_is_not_free() -> None:
    """Its arguments are not shown unless the persona streams them, but they were written."""
    run = RecordedRun()
    lost = ProviderError("connection", "lost")

    called(run, Replies([CallDelta("a b c"), lost], [TextDelta("d"), TurnEnd("stop")]))

    assert (4, "estimated", []) == (run.usage.output_tokens, run.usage.source, run.arguments)


TOLD = Usage(input_tokens=45_000, output_tokens=1, cache_read_tokens=40_000)


@pytest.mark.parametrize(
    ("chunks", "output_tokens"),
    [
        ([], 1),
        ([CallDelta("a b c")], 3),
        ([TextDelta("a b"), UsageUpdate(replace(TOLD, output_tokens=9)), TextDelta("c")], 9),
    ],
)
@pytest.mark.parametrize("broken_by", [CancelRequested(), ProviderError("auth", "no")])
def test_what_the_provider_told_before_a_call_broke_off_is_counted(
    broken_by: BaseException, chunks: list[Chunk], output_tokens: int
) -> None:
    """The last of it, also where no text came; the output is at least what was streamed."""
    run = RecordedRun()

    with pytest.raises(type(broken_by)):
        called(run, Replies([UsageUpdate(TOLD), *chunks, broken_by]))

    assert replace(TOLD, output_tokens=output_tokens, source="estimated") == run.usage


def test_a_call_that_broke_off_before_its_first_word_is_told_of() -> None:
    """The next try begins under the sums of this one; zeros tell nothing."""
    run = RecordedRun()
    lost = ProviderError("connection", "lost")
    provider = Replies(
        [UsageUpdate(TOLD), lost], [UsageUpdate(Usage()), lost], [TextDelta("d"), TurnEnd("stop")]
    )

    reply = called(run, provider)

    assert [45_000] == [cost.usage.input_tokens for cost in costs(run)]
    assert (45_001, 2) == (run.usage.input_tokens, run.usage.output_tokens)
    assert Usage(input_tokens=1, output_tokens=1, source="estimated") == reply.usage


def test_the_input_of_a_provider_that_told_only_the_output_is_estimated() -> None:
    """The input is estimated where text came, since some servers report zeros until the end."""
    run = RecordedRun()
    told = UsageUpdate(Usage(output_tokens=5))

    with pytest.raises(CancelRequested):
        called(run, Replies([told, TextDelta("a"), CancelRequested()]), say="one two")

    assert Usage(input_tokens=2, output_tokens=5, source="estimated") == run.usage


def test_a_turn_that_is_refused_at_its_end_costs_what_was_reported() -> None:
    """Its arguments are too long for any event, and were written all the same."""
    run = RecordedRun()
    endless = ToolCall("c", "t", "x" * 2_000_000)

    with pytest.raises(ProviderError, match="exceeded 1,048,576 characters"):
        called(run, Replies(*[[TurnEnd("tool_calls", (endless,), TOLD)]] * MAX_TRIES))

    assert MAX_TRIES * 45_000 == run.usage.input_tokens


@pytest.mark.parametrize(("was_accepted", "billed"), [(True, 1), (False, 0)])
def test_a_call_that_timed_out_is_billed_if_the_provider_accepted_it(
    was_accepted: bool, billed: int
) -> None:
    """An accepted request costs its input, even without a response."""
    run = RecordedRun()
    late = ProviderError("timeout", "late", was_accepted=was_accepted)

    reply = called(run, Replies([late], [TurnEnd("stop", usage=Usage(input_tokens=1))]), say="a b")

    assert (1, 2 * billed) == (
        reply.usage.input_tokens,
        run.usage.input_tokens - reply.usage.input_tokens,
    )


@pytest.mark.parametrize("has_smaller", [True, False])
def test_output_before_a_request_was_too_long_is_void_before_the_point_moves(
    has_smaller: bool,
) -> None:
    """The point ends the turn; the cost of a summary follows that of the output."""
    run = MemoryRun()
    too_large = ProviderError("invalid_request", "too long", too_large=TooLarge())
    rest = [TextDelta("d"), TurnEnd("stop")]
    first = [TextDelta("a b"), too_large]
    chain = chain_of(*([Replies(first, rest)] if has_smaller else [Replies(first), Replies(rest)]))

    def shrink(route: Route, refused: ModelRequest, _: TooLarge) -> ModelRequest | None:
        summary = Usage(input_tokens=7, output_tokens=9)
        run.compact(ContextCompacted(window_tokens=8_000), run.add_usage(route, summary))
        return refused if has_smaller else None

    call_model(chain, lambda _: request("x"), run, run.stop, shrink)

    moved = ["run.cost", "context.compacted", *["run.fallback"] * (not has_smaller)]
    expected = ["message.delta", "message.reset", "run.cost", *moved]
    assert expected == [event["type"] for event in run.events]
    assert 1 == run.events[1]["data"]["from_seq"]
    written = [e["data"]["usage"] for e in run.events if e["type"] == "run.cost"]
    assert [2, 11] == [usage["output_tokens"] for usage in written]


def test_a_refusal_after_some_text_is_a_try() -> None:
    """Each of them is billed: a vendor that breaks off so is not asked for minutes."""
    run = RecordedRun()
    cut = [TextDelta("a b "), ProviderError("rate_limited", "slow down", retry_after=0.01)]

    with pytest.raises(ProviderError, match="slow down"):
        called(run, Replies(*[cut] * MAX_TRIES))

    assert MAX_TRIES - 1 == len(run.backed_off)
