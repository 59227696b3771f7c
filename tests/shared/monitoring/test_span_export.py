"""Spans on their way to a collector: what arrives, and what it costs when none takes them."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from arkloop.shared import spans
from arkloop.shared.config import Settings
from arkloop.shared.monitoring import otlp, span_export
from arkloop.shared.monitoring.span_export import MAX_PENDING, SpanExporter
from arkloop.shared.spans import Kind, Span
from tests.collector import Collector, collector, read
from tests.waiting import eventually

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"

Export = Callable[..., SpanExporter]


@pytest.fixture
def receiver() -> Iterator[Collector]:
    with collector() as made:
        yield made


@pytest.fixture
def export(
    settings: Settings, receiver: Collector, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Export]:
    """Start the export to the collector, fast; stop it at the end."""
    monkeypatch.setattr(span_export, "SEND_SECONDS", 0.02)
    monkeypatch.setattr(span_export, "PAUSES", (0.01, 0.01))
    started: list[SpanExporter] = []

    def begin(**fields: Any) -> SpanExporter:
        to = replace(settings, otlp_url=f"{receiver.url}/v1/traces", **fields)
        exporter = span_export.start(to, "arkloop-test")
        assert exporter is not None
        started.append(exporter)
        return exporter

    yield begin
    spans.record_to(None)
    for exporter in started:
        exporter.stop()


def span(**attributes: spans.Attribute) -> Span:
    made = Span("a span", Kind.CLIENT, TRACE, "1" * 16, "2" * 16, attributes)
    made.ended = made.began + 1_500_000_000
    return made


def test_what_is_written_is_what_the_protocol_s_own_classes_read() -> None:
    """Every type of an attribute, long and odd texts, times, status, resource and schema."""
    given = span(
        text="é" * 500, number=-7, many=1 << 40, rate=0.5, yes=True, names=("stop", "length")
    )
    given.fail("provider.timeout")
    [seen] = read(otlp.request({"service.name": "x" * 200}, [given]))
    assert ("a span", 3, TRACE, "1" * 16, "2" * 16) == (
        *(seen.name, seen.kind, seen.trace_id, seen.span_id, seen.parent_id),
    )
    assert 1.5 == pytest.approx(seen.ended - seen.began)
    assert seen.attributes == {
        "text": "é" * 500,
        "number": -7,
        "many": 1 << 40,
        "rate": 0.5,
        "yes": True,
        "names": ["stop", "length"],
        "error.type": "provider.timeout",
    }
    assert seen.is_error
    assert ({"service.name": "x" * 200}, otlp.SCHEMA_URL) == (seen.resource, seen.schema_url)


def test_spans_that_have_values_in_common_keep_their_own() -> None:
    """Values that are encoded once for many spans: 1 and True are different, and none is shared."""
    given = [
        Span("x", Kind.CLIENT, TRACE, f"{number:016}", None, own, common=common)
        for number, (common, own) in enumerate(
            [
                ((("gen_ai.request.stream", True), ("gen_ai.agent.version", None)), {"of": 1}),
                ((("gen_ai.request.stream", True), ("gen_ai.agent.version", "2")), {"of": True}),
                ((), {"arkloop.run.id": "é" * 600, "of": 1.0}),
                ((), {"arkloop.run.id": "é" * 300, "of": None}),
            ]
        )
    ]
    found = [repr(one.attributes) for one in read(otlp.request({}, given))]
    assert found == [
        repr({"gen_ai.request.stream": True, "of": 1}),
        repr({"gen_ai.request.stream": True, "gen_ai.agent.version": "2", "of": True}),
        repr({"arkloop.run.id": "é" * 600, "of": 1.0}),
        repr({"arkloop.run.id": "é" * 300}),
    ]


def test_texts_that_are_none_do_not_keep_the_others_back() -> None:
    """Half a surrogate pair, which models write, becomes a question mark; long texts are cut."""
    [seen] = read(otlp.request({}, [span(odd="a\ud800b", long="x" * 5_000)]))
    assert ("a?b", otlp.MAX_CHARACTERS) == (seen.attributes["odd"], len(seen.attributes["long"]))


def test_a_connection_is_kept_and_one_that_was_closed_costs_nothing(
    export: Export, receiver: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    """Collectors close connections that were idle, without a word."""
    export()
    for number, expected in enumerate((1, 1, 1, 2, 3), 1):
        receiver.hangs_up = number > 2
        spans.begin("x", Kind.INTERNAL, trace_id=TRACE).end()
        eventually(lambda count=number: len(receiver.spans) == count)
        assert expected == receiver.connections
    assert [] == caplog.records


def test_spans_arrive_with_the_headers_and_the_resource(
    export: Export, receiver: Collector
) -> None:
    """As OTLP over HTTP requires: path, content type, and what the operator has set."""
    export(
        otlp_headers=(("Authorization", "Bearer s3cret"),),
        resource_attributes=(("deployment.environment.name", "test"),),
    )
    with spans.begin("outer", Kind.SERVER, trace_id=TRACE, parent_id="3" * 16) as outer:
        spans.begin("inner", Kind.INTERNAL).end()
    eventually(lambda: len(receiver.spans) == 2)
    inner, outer_seen = receiver.spans
    assert ("inner", outer.span_id) == (inner.name, inner.parent_id)
    assert ("outer", "3" * 16) == (outer_seen.name, outer_seen.parent_id)
    assert "/v1/traces" == receiver.paths[0]
    headers = receiver.headers[0]
    assert ("application/x-protobuf", "Bearer s3cret") == (
        *(headers["Content-Type"], headers["Authorization"]),
    )
    assert "arkloop-test" == inner.resource["service.name"]
    assert "test" == inner.resource["deployment.environment.name"]


def test_a_batch_is_sent_again_when_the_collector_asks_for_it(
    export: Export, receiver: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    """503 and 429 may pass; the log has one line for the trouble and one for its end."""
    receiver.statuses += [503, 429]
    exporter = export()
    exporter.take(span())
    eventually(lambda: len(receiver.spans) == 1)
    eventually(lambda: len(caplog.records) == 2)
    first, last = (record.getMessage() for record in caplog.records)
    assert "HTTP status 503" in first
    assert "works again: 0 were dropped" in last


def test_a_collector_that_refuses_costs_spans_and_nothing_else(
    export: Export, receiver: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    """They are not sent again, and counted; no header is in the log."""
    receiver.statuses += [401]
    exporter = export(otlp_headers=(("Authorization", "Bearer s3cret"),))
    exporter.take(span())
    eventually(lambda: not receiver.statuses)
    exporter.take(span())
    eventually(lambda: "1 were dropped" in caplog.text)
    assert 1 == len(receiver.spans)
    assert "s3cret" not in caplog.text + repr(exporter.__dict__.get("settings"))


def test_a_frozen_collector_keeps_nobody_waiting(
    export: Export, receiver: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    """The queue is bounded: what does not fit is dropped at once, and nothing raises."""
    receiver.release.clear()
    exporter = export()
    began = time.monotonic()
    for _ in range(3 * MAX_PENDING):
        exporter.take(span())
    assert time.monotonic() - began < span_export.TIMEOUT_SECONDS
    assert len(exporter._pending) <= MAX_PENDING
    assert 2 * MAX_PENDING - 2 * span_export.BATCH <= exporter._dropped
    receiver.release.set()


def test_a_response_that_trickles_is_given_up(
    export: Export,
    receiver: Collector,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each byte is in time, and the response never ends: spans go to the next connection."""
    receiver.trickles = True
    exporter = export()
    with monkeypatch.context() as patch:
        patch.setattr(span_export, "TIMEOUT_SECONDS", 0.3)
        exporter.take(span())
        eventually(lambda: "no complete response within 0.3 s" in caplog.text)
    receiver.trickles = False
    exporter.take(span())
    eventually(lambda: bool(receiver.spans))


def test_a_collector_that_is_away_is_logged_once(
    export: Export, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """However many batches fail."""
    caplog.set_level(logging.WARNING)
    exporter = SpanExporter(replace(settings, otlp_url="http://127.0.0.1:9/v1/traces"), "x")
    for _ in range(3):
        exporter.take(span())
        eventually(lambda: not exporter._pending)
    exporter.stop()
    assert 1 == len(caplog.records)


def test_the_trace_id_alone_decides_whether_a_trace_is_kept() -> None:
    """Every process keeps the same traces, as OpenTelemetry's `TraceIdRatioBased` does."""
    kept: list[Span] = []
    spans.record_to(kept.append, 0.25)
    try:
        ids = [f"{'0' * 16}{number:016x}" for number in (0, (1 << 62) - 1, 1 << 62, (1 << 64) - 1)]
        for trace_id in ids:
            spans.begin("x", Kind.INTERNAL, trace_id=trace_id).end()
        assert ids[:2] == [one.trace_id for one in kept]
    finally:
        spans.record_to(None)


def test_without_a_collector_nothing_is_recorded() -> None:
    """Spans can be begun, filled, failed and ended all the same."""
    with spans.begin("x", Kind.INTERNAL, trace_id=TRACE) as none:
        none.set({"a": 1})
        assert spans.current.get() is None
    assert {} == none.attributes
