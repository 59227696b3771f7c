"""Headers of every answer: the trace, security, CORS."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from flask.testing import FlaskClient

from arkloop.api.app import create_app
from arkloop.shared import logs
from arkloop.shared.storage.connections import Connections

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
ORIGIN = "https://app.example.com"


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


def test_a_listed_origin_may_read_the_answers(client_with: Callable[..., FlaskClient]) -> None:
    """Errors too, with the headers that a client needs."""
    client = client_with(cors_origins=(ORIGIN,))

    headers = client.get("/v1/me", headers={"Origin": ORIGIN}).headers

    assert ORIGIN == headers["Access-Control-Allow-Origin"]
    exposed = headers["Access-Control-Expose-Headers"].split(", ")
    wanted = {"X-Next-Cursor", "Link", "X-Trace-Id", "Location", "Idempotency-Replayed"}
    assert wanted <= set(exposed)
    assert "Origin" in headers["Vary"]


def test_a_listed_origin_may_ask_before(client_with: Callable[..., FlaskClient]) -> None:
    """The preflight needs no token and may be remembered."""
    client = client_with(cors_origins=("https://other.example.com", ORIGIN))

    response = client.options(
        "/v1/threads",
        headers={
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
        },
    )

    assert 200 == response.status_code
    assert ORIGIN == response.headers["Access-Control-Allow-Origin"]
    assert "POST" in response.headers["Access-Control-Allow-Methods"]
    allowed = response.headers["Access-Control-Allow-Headers"].lower().split(", ")
    assert {"authorization", "content-type", "idempotency-key", "last-event-id"} <= set(allowed)
    assert "600" == response.headers["Access-Control-Max-Age"]


@pytest.mark.parametrize(
    "origin",
    ["null", "https://evil.com", f"{ORIGIN}.evil.com", ORIGIN.upper(), f"{ORIGIN}:8443", "*"],
)
def test_other_origins_get_nothing(client_with: Callable[..., FlaskClient], origin: str) -> None:
    """Foreign origins get no CORS header, neither by reflection nor as a near miss."""
    client = client_with(cors_origins=(ORIGIN,))

    headers = client.get("/healthz", headers={"Origin": origin}).headers

    assert "Access-Control" not in str(headers)


def test_without_a_list_there_is_no_cors(client: FlaskClient) -> None:
    """Without configured origins no CORS header is sent."""
    headers = client.get("/healthz", headers={"Origin": ORIGIN}).headers

    assert "Access-Control" not in str(headers)


def test_what_is_logged_carries_the_trace(client: FlaskClient) -> None:
    """A log line of a request is found by the trace id of its answer."""
    response = client.get("/healthz")

    assert response.headers["X-Trace-Id"] == logs.bound.get()["trace_id"]
