"""The line that says why a run failed: enough for an operator, and no secret."""

import logging

import httpx2
import pytest

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.types import RunError
from arkloop.worker.attempt import failure_log
from arkloop.worker.contract.outcomes import ProviderError

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
