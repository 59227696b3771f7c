"""The anthropic provider: what it sends, and what it makes of what is answered."""

import socket
import struct
import threading
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from arkloop.shared.catalog import model_routes
from arkloop.shared.catalog.prices import Prices
from arkloop.shared.events.usage import Usage
from arkloop.worker import providers
from arkloop.worker.agent.model_call import call_model
from arkloop.worker.agent.retry import MAX_TRIES
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.contract.messages import (
    CallDelta,
    Chunk,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    TurnEnd,
    UsageUpdate,
)
from arkloop.worker.contract.outcomes import ProviderError
from tests.worker.providers.anthropic_answers import block, finish, piece, start, text
from tests.worker.providers.fake_vendor import (
    REQUEST,
    Answer,
    anthropic_stream,
    ask,
    raw,
    route_to,
    vendor,
)
from tests.worker.recorded_run import RecordedRun

MILLION = Decimal(1_000_000)  # USD per million tokens: each costs one


def answered(*events: Any) -> list[Chunk]:
    with vendor(raw(anthropic_stream(*events))) as fake:
        return ask("anthropic", fake.url)


def end(*events: Any) -> TurnEnd:
    last = answered(*events)[-1]
    assert isinstance(last, TurnEnd)
    return last


def test_text_thinking_and_usage_are_streamed() -> None:
    """Pieces come in order, usage as soon as it is reported; unknown ones are ignored."""
    chunks = answered(
        start(input_tokens=10, cache_read_input_tokens=4, cache_creation_input_tokens=2),
        {"type": "ping"},
        block(0, type="thinking", thinking="", signature=""),
        piece(0, "thinking_delta", thinking="hm"),
        piece(0, "signature_delta", signature="abc"),
        {"type": "content_block_stop", "index": 0},
        block(1, type="redacted_thinking", data="xyz"),
        {"type": "something_new", "value": 1},
        *text(2, "Hel", "lo"),
        block(3, type="something_new"),
        piece(3, "something_new", value=1),
        finish("end_turn", output_tokens=3, output_tokens_details={"thinking_tokens": 1}),
    )

    usage = Usage(
        input_tokens=16,
        output_tokens=3,
        cache_read_tokens=4,
        cache_write_tokens=2,
        reasoning_tokens=1,
    )
    assert [
        UsageUpdate(Usage(input_tokens=16, cache_read_tokens=4, cache_write_tokens=2)),
        ThinkingDelta("hm"),
        TextDelta("Hel"),
        TextDelta("lo"),
        UsageUpdate(usage),
        TurnEnd("stop", (), usage),
    ] == chunks


def test_the_last_usage_counts() -> None:
    """Later figures are sums so far, not more to be added."""
    found = end(
        start(input_tokens=10, output_tokens=1, cache_read_input_tokens=3),
        *text(0, "Hi"),
        finish("end_turn", input_tokens=11, output_tokens=7, cache_read_input_tokens=5),
    )

    assert Usage(input_tokens=16, output_tokens=7, cache_read_tokens=5) == found.usage


def test_zeros_take_back_nothing() -> None:
    """Some servers tell the input first and fill it with zeros at the end."""
    found = end(
        start(input_tokens=10, cache_read_input_tokens=3),
        *text(0, "Hi"),
        finish("end_turn", input_tokens=0, output_tokens=7, cache_read_input_tokens=0),
    )

    assert Usage(input_tokens=13, output_tokens=7, cache_read_tokens=3) == found.usage


def test_zeros_beside_text_are_no_usage() -> None:
    """Some servers fill in zeros for what they do not count."""
    zeros = {"input_tokens": 0, "output_tokens": 0}

    assert end(start(**zeros), *text(0, "Hi"), finish("end_turn", output_tokens=0)).usage is None
    assert Usage() == end(start(**zeros), finish("end_turn", output_tokens=0)).usage
    chunks = answered(start(input_tokens=5), *text(0, "Hi"), finish("end_turn", output_tokens=0))
    assert UsageUpdate(Usage(input_tokens=5)) in chunks and chunks[-1].usage is None


BEGUN = start(input_tokens=20, cache_creation_input_tokens=150_000, output_tokens=1)
BOUNDED = replace(REQUEST, max_output_tokens=10_000)  # its worst case is known
COUNTED = Usage(input_tokens=150_020, output_tokens=1, cache_write_tokens=150_000)


def refusal(category: str | None) -> dict[str, Any]:
    last = finish("refusal", output_tokens=1)
    details = {"type": "refusal", "category": category, "explanation": None}
    return {**last, "delta": {**last["delta"], "stop_details": details}}


@pytest.mark.parametrize(
    ("place", "said", "last", "billed"),
    [
        ("anthropic", [], refusal("cyber"), Usage()),
        ("anthropic", [], refusal("general_harms"), Usage()),
        ("anthropic", [], refusal("bio"), COUNTED),
        ("anthropic", [], refusal("frontier_llm"), COUNTED),
        ("anthropic", [], refusal("reasoning_extraction"), COUNTED),
        ("anthropic", [], refusal("a_new_one"), COUNTED),
        ("anthropic", [], refusal(None), COUNTED),
        ("anthropic", [], finish("refusal", output_tokens=1), COUNTED),
        ("anthropic", text(0, "Well, "), refusal("cyber"), COUNTED),
        (
            "anthropic",
            [block(0, type="thinking", thinking="", signature="")],
            refusal("cyber"),
            COUNTED,
        ),
        ("foundry", [], refusal("cyber"), COUNTED),
        ("compatible", [], refusal("cyber"), COUNTED),
    ],
)
def test_some_refusals_before_any_output_are_free_at_anthropic(
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    said: list[Any],
    last: dict[str, Any],
    billed: Usage,
) -> None:
    """Anthropic reports the usage of a refusal also where it bills none: then it must not count.

    Source: https://platform.claude.com/docs/en/release-notes/overview. No refusal before any
    output was billed from June 2, 2026 on; since September 24, 2026 those of three categories are.
    """
    run = RecordedRun()
    with vendor(raw(anthropic_stream(BEGUN, *said, last))) as fake:
        route = route_to("anthropic", fake.url, prices=Prices.of(input=MILLION, output=MILLION))
        if place == "anthropic":
            monkeypatch.setattr(model_routes, "VENDOR_URLS", {"anthropic": fake.url})
            route = replace(route, base_url=None)
        elif place == "foundry":
            route = replace(route, platform="foundry")
        chain = RouteChain([route], lambda route: providers.load(route, faults=False))
        reply = call_model(chain, lambda _: REQUEST, run, run.stop)

    assert ("content_filter", billed) == (reply.end.stop_reason, reply.usage)
    assert billed.input_tokens + billed.output_tokens == run.totals.cost_usd
    assert billed.input_tokens == run.usage.input_tokens


@pytest.mark.parametrize(
    ("url", "is_vendors"),
    [
        ("https://api.anthropic.com", True),
        ("https://api.anthropic.com/", True),
        ("https://API.anthropic.com:443", True),
        ("https://api.anthropic.com.example.org", False),
        ("https://example.org/api.anthropic.com", False),
    ],
)
def test_anthropic_is_recognized_by_its_host(url: str, is_vendors: bool) -> None:
    """Its bills, and the schemas that it accepts, are the same however its address is written."""
    assert is_vendors == route_to("anthropic", url).is_at_anthropic


@pytest.mark.parametrize("is_silent", [True, False])
@pytest.mark.parametrize(("category", "billed"), [("cyber", Usage()), ("bio", COUNTED)])
def test_a_refusal_ends_a_response_without_its_last_event(
    monkeypatch: pytest.MonkeyPatch, category: str, billed: Usage, is_silent: bool
) -> None:
    """A stream that breaks off or falls silent after it is not retried, and costs no more."""
    run, is_over = RecordedRun(), threading.Event()

    def answer(client: socket.socket) -> None:
        raw(anthropic_stream(BEGUN, refusal(category), stop=False))(client)
        is_over.wait(5 if is_silent else 0)

    with vendor(*[answer] * MAX_TRIES) as fake:
        monkeypatch.setattr(model_routes, "VENDOR_URLS", {"anthropic": fake.url})
        route = route_to("anthropic", None, idle_seconds=1)
        chain = RouteChain([route], lambda route: providers.load(route, faults=False))
        reply = call_model(chain, lambda _: BOUNDED, run, run.stop)
        is_over.set()

    assert (1, "content_filter") == (len(fake.bodies), reply.end.stop_reason)
    assert billed == reply.usage == run.usage


def test_parallel_tool_calls_are_put_together_from_their_pieces() -> None:
    """Text beside them is passed on; arguments that are no JSON stay the text they were."""
    chunks = answered(
        start(input_tokens=5),
        *text(0, "Let me see."),
        block(1, type="tool_use", id="a", name="calculator", input={}),
        piece(1, "input_json_delta", partial_json=""),
        piece(1, "input_json_delta", partial_json='{"exp'),
        piece(1, "input_json_delta", partial_json='ression": "2"}'),
        block(2, type="tool_use", id="b", name="current_time", input={}),
        block(3, type="tool_use", id="c", name="x", input={}),
        piece(3, "input_json_delta", partial_json="{broken"),
        block(4, type="tool_use", id="d", name="whole", input={"a": 1}),
        finish("tool_use", output_tokens=9),
    )

    calls = (
        ToolCall("a", "calculator", {"expression": "2"}),
        ToolCall("b", "current_time", {}),
        ToolCall("c", "x", "{broken"),
        ToolCall("d", "whole", {"a": 1}),
    )
    usage = Usage(input_tokens=5, output_tokens=9)
    _, said, *pieces, _, end = chunks
    assert (TextDelta("Let me see."), TurnEnd("tool_calls", calls, usage)) == (said, end)
    assert pieces == [
        CallDelta("", 0, "a", "calculator"),
        CallDelta('{"exp', 0, "a", "calculator"),
        CallDelta('ression": "2"}', 0, "a", "calculator"),
        CallDelta("", 1, "b", "current_time"),
        CallDelta("", 2, "c", "x"),
        CallDelta("{broken", 2, "c", "x"),
        CallDelta("", 3, "d", "whole"),
    ]


@pytest.mark.parametrize(
    "pieces",
    [[""], ["", ""], ["", '{"expression"', ': "2"}'], ['{"expression": "2"}', ""]],
)
def test_a_call_may_come_whole_and_in_pieces(pieces: list[str]) -> None:
    """Pieces take the place of what came whole; one without a character takes nothing."""
    last = end(
        start(input_tokens=5),
        block(0, type="tool_use", id="a", name="calculator", input={"expression": "2"}),
        *(piece(0, "input_json_delta", partial_json=text) for text in pieces),
        finish("tool_use", output_tokens=9),
    )

    assert (ToolCall("a", "calculator", {"expression": "2"}),) == last.tool_calls


def test_a_tool_of_the_vendor_is_no_call() -> None:
    """Its input is written by the model and paid for; nobody here can make it."""
    chunks = answered(
        start(input_tokens=5),
        block(0, type="server_tool_use", id="s", name="web_search", input={}),
        piece(0, "input_json_delta", partial_json='{"query": "x"}'),
        block(1, type="tool_use", id="a", name="calculator", input={}),
        piece(1, "input_json_delta", partial_json="{}"),
        finish("tool_use", output_tokens=9),
    )

    assert (ToolCall("a", "calculator", {}),) == chunks[-1].tool_calls
    assert CallDelta('{"query": "x"}') in chunks


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("pause_turn", "pause_turn"),
        (None, "stop"),
    ],
)
def test_reasons_to_stop_have_the_words_of_the_other_providers(
    reason: str | None, expected: str
) -> None:
    """Equivalent stop reasons get the other providers' words, and all others stay."""
    last = end(start(), *text(0, "Hi"), finish(reason))

    assert expected == last.stop_reason
    assert last.is_context_full == (reason == "model_context_window_exceeded")


@pytest.mark.parametrize("late", [b"", b"event: error\ndata: {}\n\n", b"event: x\ndata: bye\n\n"])
def test_a_failure_after_a_whole_turn_is_ignored(late: bytes) -> None:
    """The turn would be paid for twice; before its last event the failure counts."""

    def broken(*events: Any, stop: bool) -> Answer:
        def answer(client: socket.socket) -> None:
            raw(anthropic_stream(*events, stop=stop), late)(client)
            threading.Event().wait(0.5)  # a reset throws away what has not been read
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        return answer

    events = (start(), *text(0, "Hi"), finish("end_turn", output_tokens=1))
    with vendor(broken(*events, stop=True)) as fake:
        last = ask("anthropic", fake.url)[-1]
    assert isinstance(last, TurnEnd) and "stop" == last.stop_reason

    with pytest.raises(ProviderError), vendor(broken(*events, stop=False)) as fake:
        ask("anthropic", fake.url)
