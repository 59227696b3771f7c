"""Errors on the wire: the table is total, the shape is one, nothing leaks."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from arkloop.api.app import create_app
from arkloop.api.http import errors
from arkloop.shared.errors import ArkloopError, RunNotFound, Unavailable
from arkloop.shared.storage.connections import Connections
from tests.clients import error_of


def _all(error: type[ArkloopError]) -> Iterator[type[ArkloopError]]:
    for child in error.__subclasses__():
        yield child
        yield from _all(child)


@pytest.fixture(scope="module")
def app(connections: Connections) -> Flask:
    """The app with endpoints that fail."""
    app = create_app(connections=connections)

    @app.get("/fails/<how>")
    def fail(how: str) -> str:
        if how == "bug":
            raise KeyError("a secret")
        if how == "sql":
            with connections.reading() as sql:
                sql.execute(text("SELECT secret FROM nothing"))
        if how == "away":
            raise Unavailable()
        raise RunNotFound(some="detail")

    return app


def test_every_error_has_a_status_and_a_code() -> None:
    """No error that a caller may meet is missing in the table."""
    for error in _all(ArkloopError):
        assert 400 <= errors.status_of(error) < 600
        assert error.code
        assert error.message.endswith(".")


def test_every_code_belongs_to_one_error() -> None:
    """A code tells exactly what happened."""
    codes = [error.code for error in _all(ArkloopError)]

    assert sorted(set(codes)) == sorted(codes)


@pytest.mark.parametrize(
    ("message", "details", "shown"),
    [
        ("Too much; see `details`. Wait.", {"a": 1, "b": None}, "Too much (a: 1). Wait."),
        ("Too much; see `R` and `details`.", {"a": ["x", "y"]}, "Too much (a: x and y); see `R`."),
        ("Too much; see `details`.", {}, "Too much."),
        ("Too much.", {"a": 1}, "Too much."),
    ],
)
def test_details_take_the_place_of_the_words_that_refer_to_them(
    message: str, details: dict[str, Any], shown: str
) -> None:
    """Other protocols have no field for them."""
    assert shown == errors.in_words(message, details)


def test_messages_refer_to_details_in_one_way() -> None:
    """None of them is shown with a reference to what another protocol lacks."""
    referring = [error.message for error in _all(ArkloopError) if "`details`" in error.message]

    assert len(referring) > 3
    assert [] == [text for text in referring if "`details`" in errors.in_words(text, {"a": 1})]


def test_errors_have_one_shape(client: FlaskClient) -> None:
    """Code, message, details, and the trace id of the header."""
    response = client.get("/fails/expected")

    expected = {
        "code": "runs.not_found",
        "message": "Run not found.",
        "details": {"some": "detail"},
        "trace_id": response.headers["X-Trace-Id"],
    }
    assert (404, expected) == (response.status_code, response.json)


@pytest.mark.parametrize("how", ["bug", "sql"])
def test_a_bug_says_nothing_but_its_trace(
    client: FlaskClient, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """The traceback goes to the log, the client gets the shape and no detail."""
    with caplog.at_level(logging.ERROR):
        response = client.get(f"/fails/{how}")

    assert (500, "internal.error") == error_of(response)
    assert "secret" not in response.text
    assert "secret" in caplog.text


def test_unavailable_says_when_to_come_back(client: FlaskClient) -> None:
    """A 503 always has Retry-After."""
    response = client.get("/fails/away")

    assert (503, "service.unavailable") == error_of(response)
    assert "1" == response.headers["Retry-After"]


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/nothing", "/v1/threads/", "//v1/threads", "/v1//threads", "/V1/threads"],
)
def test_other_addresses_are_not_found(client: FlaskClient, path: str) -> None:
    """Each thing has one address: its other spellings do not redirect."""
    assert (404, "http.not_found") == error_of(client.get(path))


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE"])
def test_other_methods_are_told_which_are_allowed(client: FlaskClient, method: str) -> None:
    """405 with Allow (RFC 9110, 15.5.6)."""
    response = client.open("/v1/threads", method=method)

    assert (405, "http.method_not_allowed") == error_of(response)
    assert {"GET", "HEAD", "OPTIONS", "POST"} == set(response.allow)


def test_a_method_is_not_overridden_by_a_header(client: FlaskClient) -> None:
    """A POST stays a POST."""
    response = client.post("/healthz", headers={"X-HTTP-Method-Override": "GET"})

    assert 405 == response.status_code
