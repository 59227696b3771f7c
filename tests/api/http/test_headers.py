"""Headers of every answer: the trace, security."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from flask.testing import FlaskClient

from arkloop.api.app import create_app
from arkloop.shared import logs
from arkloop.shared.storage.connections import Connections

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def client_with(connections: Connections) -> Callable[..., FlaskClient]:
    """Call it for a client of an app with other settings."""

    def new(**changes: object) -> FlaskClient:
        settings = replace(connections.settings, **changes)
        return create_app(connections=replace(connections, settings=settings)).test_client()

    return new


@pytest.mark.parametrize("path", ["/healthz", "/nothing", "/v1/me", "/v1/threads/x"])
def test_every_answer_has_a_trace_of_its_own(client: FlaskClient, path: str) -> None:
    """Errors too; two requests never share one."""
    traces = {client.get(path).headers["X-Trace-Id"] for _ in range(2)}

    assert 2 == len(traces)
    assert all(re.fullmatch("[0-9a-f]{32}", trace) for trace in traces)


@pytest.mark.parametrize(
    ("traceparent", "taken"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", True),
        (f"01-{TRACE}-00f067aa0ba902b7-01-more", True),
        (f"ff-{TRACE}-00f067aa0ba902b7-01", False),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", False),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", False),
        (f"00-{TRACE[:-1]}-00f067aa0ba902b7-01", False),
        ("nonsense", False),
    ],
)
def test_a_caller_may_bring_the_trace(client: FlaskClient, traceparent: str, taken: bool) -> None:
    """A valid traceparent's trace id is ours too; another is ignored (W3C trace context)."""
    response = client.get("/healthz", headers={"traceparent": traceparent})

    assert taken == (TRACE == response.headers["X-Trace-Id"])


@pytest.mark.parametrize("path", ["/healthz", "/nothing", "/v1/me"])
def test_every_answer_has_the_security_headers(client: FlaskClient, path: str) -> None:
    """No response may be sniffed, framed, cached or sent as a referrer."""
    headers = client.get(path).headers

    assert "nosniff" == headers["X-Content-Type-Options"]
    assert "no-referrer" == headers["Referrer-Policy"]
    assert "default-src 'none'; frame-ancestors 'none'" == headers["Content-Security-Policy"]
    assert "no-store" == headers["Cache-Control"]
    assert "application/json" == headers["Content-Type"]


def test_behind_tls_browsers_are_told_to_stay_there(
    client_with: Callable[..., FlaskClient],
) -> None:
    """HSTS comes with secure cookies, and not without."""
    names = [client_with(secure_cookies=secure).get("/healthz").headers for secure in (True, False)]

    assert [True, False] == ["Strict-Transport-Security" in headers for headers in names]


def test_what_is_logged_carries_the_trace(client: FlaskClient) -> None:
    """A log line of a request is found by the trace id of its answer."""
    response = client.get("/healthz")

    assert response.headers["X-Trace-Id"] == logs.bound.get()["trace_id"]
