"""The line that says why a run failed: enough for an operator, and no secret."""

import logging
import socket

import httpx2
import pytest

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.types import RunError
from arkloop.worker.attempt import failure_log
from arkloop.worker.contract.outcomes import ProviderError
from tests.closed_port import closed_port
from tests.worker.providers.fake_vendor import ask

ERROR = RunError("provider.connection", "The provider cannot be reached.", True)


def route(**fields: str) -> Route:
    return Route(id="r", provider="openai", model="m", api_key="sk-secret", **fields)


def behind(cause: BaseException) -> ProviderError:
    """Raise it as an SDK and its HTTP client do, one from the other."""
    try:
        try:
            raise httpx2.ConnectError("Connection error.") from cause
        except httpx2.ConnectError as error:
            raise ProviderError("connection", "The provider cannot be reached.") from error
    except ProviderError as failure:
        return failure


def test_the_line_has_code_route_address_and_root_cause(caplog: pytest.LogCaptureFixture) -> None:
    """The line has code, route, host, port and root cause, and nothing else of the address."""
    at = route(base_url="http://user:s3cret@10.0.0.7:8000/v1?key=s3cret")

    failure_log.report(ERROR, "own", at, behind(ConnectionRefusedError(111, "Connection refused")))

    [record] = caplog.records
    assert logging.WARNING == record.levelno
    assert record.getMessage() == (
        "run failed: provider.connection, route r at 10.0.0.7:8000: "
        "ConnectionRefusedError: Connection refused"
    )
    fields = ("error_code", "route_id", "host", "port", "cause")
    assert ["provider.connection", "r", "10.0.0.7", 8000] == [
        getattr(record, name) for name in fields[:-1]
    ]
    assert "s3cret" not in str(vars(record)) and "sk-secret" not in str(vars(record))


@pytest.mark.parametrize(
    ("at", "cause", "shown"),
    [
        (route(), None, "route r at api.openai.com:443: -"),
        (None, ValueError("what a model has said"), "route own at None:None: ValueError"),
        (route(base_url="https://x:99999/v1"), None, "route r at x:None: -"),
        (
            route(),
            behind(
                httpx2.HTTPStatusError(
                    "of the key sk-secret",
                    request=httpx2.Request("POST", "https://api.openai.com"),
                    response=httpx2.Response(401),
                )
            ),
            "route r at api.openai.com:443: HTTPStatusError: 401",
        ),
    ],
)
def test_the_line_does_with_what_is_known(
    caplog: pytest.LogCaptureFixture,
    at: Route | None,
    cause: BaseException | None,
    shown: str,
) -> None:
    """The line works without route and cause, and has only the kind of errors that are not the
    system's.
    """
    failure_log.report(ERROR, "own", at, cause)

    assert f"run failed: provider.connection, {shown}" == caplog.records[0].getMessage()


def failed_call(provider: str, base_url: str) -> ProviderError:
    with pytest.raises(ProviderError) as failed:
        ask(provider, base_url)
    return failed.value


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_the_cause_of_a_failed_connection_is_the_system_s_error(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    """A port that is closed and a host that is unknown have different causes, through the SDK and
    the HTTP client.
    """
    url = f"http://127.0.0.1:{closed_port()}"
    failure_log.report(ERROR, "own", None, failed_call(provider, url))

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    failure_log.report(ERROR, "own", None, failed_call(provider, "http://nowhere.example"))

    lines = [r for r in caplog.records if r.name == failure_log.__name__]
    assert [
        "ConnectionRefusedError: Connection refused",
        "gaierror: Name or service not known",
    ] == [vars(record)["cause"] for record in lines]
