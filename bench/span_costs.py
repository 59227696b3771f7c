"""The CPU that the spans of one request and of one run take by themselves: recorded and encoded.

It is measured in a loop in this process, so that other load hardly changes it; what the loop makes
without spans is measured in the same way and left out. Caches are warm here, as they are not in a
service, and nothing is sent: `observed` has the difference that spans make there.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

from arkloop.shared import spans
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.claim import Claim
from arkloop.shared.events.usage import Usage
from arkloop.shared.ids import new_id, new_trace_id
from arkloop.shared.monitoring import otlp
from arkloop.shared.runs import run_spans
from arkloop.shared.spans import Kind, Span
from arkloop.worker.agent import call_spans
from arkloop.worker.contract.messages import ModelRequest, TurnEnd
from bench.figure import Figure

_ORG = UUID("01a20e81-4bd5-70da-88f9-366c61169856")
_RESOURCE = {"service.name": "arkloop", "service.instance.id": "bench:1"}
_ROUTE = Route(id="small", provider="openai", model="gpt-4o-mini")
_REQUEST = ModelRequest(model="gpt-4o-mini", system_prompt="", messages=(), max_output_tokens=1_024)
_END, _USAGE = TurnEnd(stop_reason="stop"), Usage(input_tokens=120, output_tokens=40)
_CREATE = "/v1/threads/<id:thread_id>/runs"
LOOPS = 100
ROUNDS = 60


def measure() -> Iterator[Figure]:
    """Measure the spans of a request that creates a run, and those of a run of one model call."""
    for name, count, work in (("create a run", 2, _create), ("execute a run", 3, _execute)):
        with_spans = [_microseconds(work, records=True) for _ in range(ROUNDS)]
        without = [_microseconds(work, records=False) for _ in range(ROUNDS)]
        yield Figure(
            name=f"{name}: record and encode its {count} spans",
            unit="µs",
            numbers={"median": statistics.median(with_spans) - statistics.median(without)},
            count=LOOPS * ROUNDS,
        )


def _microseconds(work: Callable[[], None], *, records: bool) -> float:
    ended: list[Span] = []
    spans.record_to(ended.append if records else None)
    began = time.thread_time()
    for _ in range(LOOPS):
        work()
    if records:
        otlp.request(_RESOURCE, ended)
    spent = time.thread_time() - began
    spans.record_to(None)
    return spent * 1e6 / LOOPS


def _create() -> None:
    """Do what a web process does about spans; `api/http/observation.py` has the request's."""
    trace_id, run_id = new_trace_id(), new_id()
    request = spans.begin("HTTP", Kind.SERVER, trace_id=trace_id)
    if request.is_recorded:
        spans.current.set(request)
        run_spans.created(run_id, trace_id, _ORG, began=request.began)
        spans.current.set(None)
        request.name = f"POST {_CREATE}"
        request.common = (
            ("http.request.method", "POST"),
            ("http.route", _CREATE),
            ("http.response.status_code", 201),
        )
        request.attributes = {"arkloop.org.id": str(_ORG), "arkloop.run.id": str(run_id)}
        request.end()


def _execute() -> None:
    now = datetime.now(UTC)
    claim = Claim(
        run_id=new_id(),
        org_id=_ORG,
        thread_id=new_id(),
        persona_id="assistant@1",
        route_id=_ROUTE.id,
        model=_ROUTE.model,
        trace_id=new_trace_id(),
        position=1,
        fence=1,
        attempt=1,
        last_seq=0,
        queued_at=now - timedelta(milliseconds=7),
        claimed_at=now,
        used_seconds=0.0,
        is_suspect=False,
    )
    with run_spans.begin_attempt(claim, began=time.time_ns(), by_message=True) as span:
        with call_spans.model_call(_ROUTE, _REQUEST) as call:
            call_spans.replied(call, _END, _USAGE)
        span.set({"arkloop.outcome": "completed"})
