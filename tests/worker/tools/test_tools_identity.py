"""The identity that every call of a tool carries, in process and on the wire."""

from dataclasses import replace

from arkloop.worker.tools import CallInfo
from tests.worker.recorded_run import RUN

CUSTOMER = replace(RUN, end_user_id="Zoë 1", metadata={"plan": "pro"})


def test_the_wire_form_has_all_of_the_identity() -> None:
    """A JSON body names run, thread, org, end user, metadata, call, key and trace."""
    info = CallInfo.of(CUSTOMER, "call")

    expected = {
        "run_id": "run",
        "thread_id": "thread",
        "org_id": "org",
        "end_user_id": "Zoë 1",
        "metadata": {"plan": "pro"},
        "tool_call_id": "call",
        "idempotency_key": "run:call",
        "traceparent": info.traceparent,
    }
    assert expected == info.wire()


def test_the_headers_have_what_fits_into_headers() -> None:
    """Headers are ASCII, without metadata, and without what the run does not have."""
    info = CallInfo.of(CUSTOMER, "call 1")

    expected = {
        "Arkloop-Run-Id": "run",
        "Arkloop-Thread-Id": "thread",
        "Arkloop-Org-Id": "org",
        "Arkloop-End-User-Id": "Zo%C3%AB%201",
        "Arkloop-Tool-Call-Id": "call%201",
        "Idempotency-Key": info.idempotency_key,
        "traceparent": info.traceparent,
    }
    assert expected == info.headers()
    assert "Arkloop-End-User-Id" not in CallInfo.of(RUN, "call").headers()
