"""CORS: the allow-list of origins, for every endpoint."""

from dataclasses import replace

import pytest
from flask import Flask
from flask.testing import FlaskClient

from arkloop.api.app import create_app
from arkloop.api.description.headers import RESPONSE
from arkloop.api.http.cors import EXPOSED_HEADERS
from arkloop.shared.storage.connections import Connections
from tests.api.auth.test_bearer import endpoints

ORIGIN = "https://app.example.com"


@pytest.fixture(scope="module")
def listing(connections: Connections) -> Flask:
    """An app that two origins may call."""
    settings = replace(connections.settings, cors_origins=("https://other.example.com", ORIGIN))
    return create_app(connections=replace(connections, settings=settings))


def preflight(origin: str = ORIGIN, method: str = "POST", headers: str = "") -> dict[str, str]:
    """Return the headers of a browser's preflight."""
    requested = {"Access-Control-Request-Headers": headers} if headers else {}
    return {"Origin": origin, "Access-Control-Request-Method": method, **requested}


@pytest.mark.parametrize("path", ["/v1/me", "/v1/runs", "/healthz", "/nothing"])
def test_a_listed_origin_may_read_every_response(listing: Flask, path: str) -> None:
    """Errors too, with the headers that a client needs."""
    headers = listing.test_client().get(path, headers={"Origin": ORIGIN}).headers

    assert ORIGIN == headers["Access-Control-Allow-Origin"]
    assert set(EXPOSED_HEADERS) == set(headers["Access-Control-Expose-Headers"].split(", "))
    assert "Origin" in headers["Vary"]


def test_a_listed_origin_may_read_every_header_that_is_described() -> None:
    """The headers of the API's description, and those that http-api.md names beside them."""
    named = {*RESPONSE, "X-Should-Retry", "Allow", "ETag", "WWW-Authenticate"}
    assert named <= set(EXPOSED_HEADERS)


def test_a_listed_origin_may_call_every_endpoint(listing: Flask) -> None:
    """The preflight of each route and method needs no token and may be remembered."""
    client = listing.test_client()
    called = endpoints(listing)

    assert ("GET", "/v1/runs/01a20e5a-2b91-76ef-b381-d919c4ad9778/events") in called
    for method, path in called:
        response = client.options(path, headers=preflight(method=method, headers="authorization"))
        assert 200 == response.status_code, path
        assert ORIGIN == response.headers["Access-Control-Allow-Origin"]
        assert method in response.headers["Access-Control-Allow-Methods"].split(", "), path
        allowed = response.headers["Access-Control-Allow-Headers"].lower().split(", ")
        assert {"authorization", "content-type", "idempotency-key", "last-event-id"} <= {*allowed}
        assert "600" == response.headers["Access-Control-Max-Age"]
        assert "Origin" in response.headers["Vary"]


@pytest.mark.parametrize(
    ("requested", "added"),
    [
        ("authorization,x-stainless-lang,user-agent", ["user-agent", "x-stainless-lang"]),
        ("Authorization, X-Of-Page", ["x-of-page"]),
        ("x-ok, bad name", []),
        ("x-ok\tx", []),
        ("*", []),
        (",".join(["x-a"] * 300), []),
    ],
)
def test_a_listed_origin_may_send_headers_of_its_own(
    listing: Flask, requested: str, added: list[str]
) -> None:
    """Names that a preflight asks for are allowed; what is no list of names is not echoed."""
    client = listing.test_client()
    known = client.options("/v1/runs", headers=preflight()).headers
    response = client.options("/v1/runs", headers=preflight(headers=requested))

    expected = [known["Access-Control-Allow-Headers"], *added]
    assert ", ".join(expected) == response.headers["Access-Control-Allow-Headers"]


@pytest.mark.parametrize(
    "origin",
    [
        *("null", "https://evil.com", f"{ORIGIN}.evil.com", ORIGIN.upper(), f"{ORIGIN}:8443"),
        *("*", ORIGIN.replace("https", "http"), f"{ORIGIN}/", f"{ORIGIN} {ORIGIN}", ""),
    ],
)
def test_other_origins_get_nothing(listing: Flask, origin: str) -> None:
    """Foreign origins get no CORS header, neither by reflection nor as a near miss; caches learn
    that the response depends on the origin.
    """
    client = listing.test_client()
    for response in (
        client.get("/healthz", headers={"Origin": origin}),
        client.options("/v1/runs", headers=preflight(origin)),
        client.get("/healthz"),
    ):
        assert "Access-Control" not in str(response.headers)
        assert "Origin" in response.headers["Vary"]


def test_without_a_list_there_is_no_cors(client: FlaskClient) -> None:
    """Without configured origins no CORS header is sent."""
    headers = client.options("/v1/runs", headers=preflight()).headers

    assert "Access-Control" not in str(headers)
