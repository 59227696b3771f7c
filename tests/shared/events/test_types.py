"""Events on the wire: one line of JSON that every store and every client takes."""

import json
import typing
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arkloop.shared.events.plain import clean, money
from arkloop.shared.events.stored_events import encode
from arkloop.shared.events.types import (
    TERMINAL_TYPES,
    Event,
    MessageCompleted,
    MessageDelta,
    MessageThinking,
    RouteCost,
    RunCompleted,
    RunCost,
    RunError,
    RunFailed,
    RunWaitingForInput,
    ToolCallRequested,
)
from arkloop.shared.events.usage import Usage

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)

#: What a provider or a tool may hand over: any text, lone surrogates and NUL too.
TEXT = st.text(st.characters(codec=None, categories=None))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def data_of(event: Event) -> dict[str, Any]:
    payload = json.loads(encode(7, event, NOW).payload)
    assert {"seq": 7, "type": event.type} == {name: payload[name] for name in ("seq", "type")}
    return dict(payload["data"])


def test_an_event_is_one_line_of_the_contracts_form() -> None:
    """Its fields in this order, without spaces, text as it is."""
    stored = encode(3, MessageDelta("é\n\u2028"), NOW)

    assert (3, "message.delta") == (stored.seq, stored.type)
    assert (
        '{"seq":3,"type":"message.delta","data":{"content":"é\\n\u2028"},'
        '"created_at":"2026-01-02T03:04:05.678Z"}'
    ) == stored.payload


@given(TEXT, st.sampled_from([MessageDelta, MessageThinking]))
def test_text_is_encoded_as_everything_else(
    text: str, kind: type[MessageDelta | MessageThinking]
) -> None:
    """Pieces of text are put together by hand: byte for byte what the encoder makes of them."""
    stored = encode(12, kind(text), NOW)
    whole = {
        "seq": 12,
        "type": kind.type,
        "data": {"content": clean(text)},
        "created_at": "2026-01-02T03:04:05.678Z",
    }

    assert json.dumps(whole, ensure_ascii=False, separators=(",", ":")) == stored.payload


@given(TEXT)
def test_any_text_can_be_stored_and_sent(text: str) -> None:
    """No line break, NUL or lone surrogate in the payload; a clean text comes back unchanged."""
    payload = encode(1, MessageDelta(text), NOW).payload

    assert not set("\n\r\x00") & set(payload)
    payload.encode()
    assert clean(text) == json.loads(payload)["data"]["content"]


@given(JSON)
def test_any_arguments_can_be_stored_and_sent(arguments: Any) -> None:
    """Any arguments of a model's call are encoded to strict JSON without NaN."""
    payload = encode(1, ToolCallRequested("c", "t", arguments), NOW).payload

    payload.encode()
    json.loads(payload, parse_constant=lambda name: pytest.fail(name))
    assert not set("\n\r\x00") & set(payload)


@given(TEXT)
def test_cleaning_changes_only_what_postgres_refuses(text: str) -> None:
    """Each such character becomes one replacement character."""
    cleaned = clean(text)

    assert len(text) == len(cleaned)
    for before, after in zip(text, cleaned, strict=True):
        refused = before == "\x00" or "\ud800" <= before <= "\udfff"
        assert ("\ufffd" if refused else before) == after
    assert cleaned == clean(cleaned)


@pytest.mark.parametrize(
    ("amount", "number"),
    [
        ("0", 0.0),
        ("0.00164", 0.00164),
        ("0.000000004", 0.0),
        ("0.123456789", 0.12345679),
        ("1234567.12345678", 1234567.12345678),
    ],
)
def test_money_is_a_number_of_eight_decimals(amount: str, number: float) -> None:
    """Computed as decimals, shown as a JSON number."""
    assert number == money(Decimal(amount))


def test_what_is_optional_is_left_out() -> None:
    """Optional fields are omitted, and fields of the contract are null."""
    asked = RunWaitingForInput(request_id="r", kind="question", prompt="?", expires_at="t")
    assert {"request_id", "kind", "prompt", "expires_at"} == set(data_of(asked))
    mcp_tool = {"config_id": "c", "hash": "h"}
    assert mcp_tool == data_of(replace(asked, mcp_tool=mcp_tool))["mcp_tool"]

    completed = data_of(RunCompleted(None, Usage(), Decimal(0), "stop"))
    assert {"message_id": None, "cost_usd": 0, "stop_reason": "stop"} == {
        name: completed[name] for name in ("message_id", "cost_usd", "stop_reason")
    }


def test_usage_and_errors_are_objects() -> None:
    """They are nested as the contract says."""
    usage = {
        "input_tokens": 6,
        "output_tokens": 5,
        "cache_read_tokens": 1,
        "cache_write_tokens": 2,
        "reasoning_tokens": 3,
        "source": "estimated",
    }
    used = Usage(**usage)
    part = RouteCost("r", "m", used, Decimal("0.5"))

    assert usage == data_of(MessageCompleted("m", "", used))["usage"]
    told = {"usage": usage, "cost_usd": 0.5}
    routes = [{"route_id": "r", "model": "m", **told}]
    assert {**told, "routes": routes} == data_of(RunCost(used, Decimal("0.5"), (part,)))
    failed = data_of(RunFailed(RunError("run.timeout", "late", True), used, Decimal(0)))
    assert {"code": "run.timeout", "message": "late", "retryable": True} == failed["error"]


def test_usage_adds_up() -> None:
    """Usage adds up, and one estimated part makes the sum an estimate."""
    reported = Usage(input_tokens=1, output_tokens=2, cache_read_tokens=3)
    estimated = Usage(input_tokens=10, source="estimated")

    assert Usage(input_tokens=2, output_tokens=4, cache_read_tokens=6) == reported + reported
    assert "estimated" == (reported + estimated).source == (estimated + reported).source
    assert 11 == (reported + estimated).input_tokens


def test_the_types_are_those_of_the_contract() -> None:
    """Every event that can be written; three of them end a run."""
    written = {event.type for event in typing.get_args(Event)}

    assert {
        "run.started",
        "run.steered",
        "message.delta",
        "message.thinking",
        "tool.call.delta",
        "message.reset",
        "message.completed",
        "tool.call",
        "tool.progress",
        "run.delegated",
        "run.suspended",
        "tool.result",
        "run.waiting_for_input",
        "run.input_received",
        "run.resumed",
        "run.throttled",
        "run.retrying",
        "run.fallback",
        "run.settings_dropped",
        "run.limit_reached",
        "context.truncated",
        "context.compacted",
        "run.cost",
        "run.cancel_requested",
        "run.completed",
        "run.failed",
        "run.cancelled",
    } == written
    assert {"run.completed", "run.failed", "run.cancelled"} == TERMINAL_TYPES


def test_nonsense_that_a_provider_reports_as_usage_still_fits() -> None:
    """Totals can always be stored, and no cost is negative."""
    absurd = Usage(input_tokens=10**19, output_tokens=-5, cache_read_tokens=10**20)
    missing = Usage(input_tokens=None, output_tokens=None)

    assert (10**12, 0, 10**12) == (
        absurd.input_tokens,
        absurd.output_tokens,
        absurd.cache_read_tokens,
    )
    assert Usage() == missing
    assert 1 == Usage(input_tokens=1, cache_read_tokens=2).cache_read_tokens
