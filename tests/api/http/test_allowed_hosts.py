"""`ARKLOOP_ALLOWED_HOSTS`: which names in the `Host` header are answered."""

from dataclasses import replace

import pytest
from flask.testing import FlaskClient
from werkzeug.test import create_environ, run_wsgi_app

from arkloop.api.app import create_app
from arkloop.shared.config import InvalidSettings, Settings
from arkloop.shared.storage.connections import Connections
from tests.clients import error_of

ALLOWED = ("localhost", "app.example.com", ".internal.example.com")


@pytest.fixture(scope="module")
def strict(connections: Connections) -> FlaskClient:
    settings = replace(connections.settings, allowed_hosts=ALLOWED)
    return create_app(connections=replace(connections, settings=settings)).test_client()


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8080",
        "app.example.com:443",
        "web-1.internal.example.com",
        "127.0.0.1:8080",
        "10.1.2.3",
        "[::1]:8080",
    ],
)
def test_allowed_names_and_all_addresses_are_answered(strict: FlaskClient, host: str) -> None:
    """Allowed host names in any case, and all addresses, with any port, are accepted."""
    assert 200 == strict.get("/healthz", headers={"Host": host}).status_code


@pytest.mark.parametrize(
    "host",
    [
        "attacker.example",
        "attacker.example:8080",
        "localhost.attacker.example",
        "xapp.example.com",
        "localhost@attacker.example",
        "localhost, attacker.example",
        "[::1",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/healthz", "/v1/auth/register", "/v1/runs", "/nothing"])
def test_any_other_name_is_refused_before_all_else(
    strict: FlaskClient, host: str, path: str
) -> None:
    """Every request for a foreign host name gets a 403 of the usual shape, by whatever method."""
    for method in ("GET", "POST", "OPTIONS"):
        response = strict.open(path, method=method, headers={"Host": host})

        assert (403, "auth.forbidden") == error_of(response)
        assert {"code", "message", "details", "trace_id"} == set(response.json or {})


@pytest.mark.parametrize(
    ("path", "protocol", "status"),
    [
        ("/healthz", "HTTP/1.0", 200),
        ("/readyz", "HTTP/1.0", 200),
        ("/v1/runs", "HTTP/1.0", 403),
        ("/healthz", "HTTP/1.1", 403),
    ],
)
def test_only_health_checks_of_http_1_0_need_no_host(
    strict: FlaskClient, path: str, protocol: str, status: int
) -> None:
    """A balancer that checks by address in HTTP/1.0 sends no `Host`, unlike any browser."""
    environ = create_environ(path, environ_overrides={"SERVER_PROTOCOL": protocol})
    del environ["HTTP_HOST"]

    _, got, _ = run_wsgi_app(strict.application, environ)
    assert f"{status} " == got[:4]


def test_by_default_every_name_is_answered(client: FlaskClient) -> None:
    """A proxy in front decides then."""
    assert 200 == client.get("/healthz", headers={"Host": "anything.example"}).status_code


@pytest.mark.parametrize("value", ["https://app.example.com", "app.example.com:443", "*", "a b"])
def test_what_is_not_a_host_name_is_told_at_the_start(value: str) -> None:
    """A URL, a port or a wildcard would match nothing."""
    with pytest.raises(InvalidSettings, match="ARKLOOP_ALLOWED_HOSTS: .* is not a host name"):
        Settings.from_env({"ARKLOOP_ALLOWED_HOSTS": value})
