"""Uploads at the same time: of one org, and of all."""

from collections.abc import Iterator
from io import BytesIO

import pytest
from werkzeug.test import TestResponse

from arkloop.api.endpoints import files as endpoint
from arkloop.shared.ids import new_id
from tests.clients import Register, User, error_of
from tests.contents import png


def send(user: User) -> TestResponse:
    form = {"file": (BytesIO(png()), "a.png")}
    return user.call("POST", "/v1/files", data=form, content_type="multipart/form-data")


@pytest.fixture
def busy(alice: User) -> Iterator[None]:
    """Other uploads of the org take all that it may have at a time."""
    endpoint._uploads[alice.org_id] = endpoint.MAX_UPLOADS_OF_ORG
    yield
    endpoint._uploads.clear()


@pytest.mark.usefixtures("busy")
def test_an_org_has_only_some_uploads_at_a_time(alice: User, register: Register) -> None:
    """429 with Retry-After beyond them, as for each limit of an org; other orgs still upload."""
    response = send(alice)

    assert (429, "rate_limit.exceeded") == error_of(response)
    assert {"limit": "org"} == (response.json or {})["details"]
    assert "1" == response.headers["Retry-After"]
    assert 201 == send(register()).status_code


@pytest.mark.usefixtures("busy")
def test_a_process_has_only_some_uploads_at_a_time(alice: User, register: Register) -> None:
    """503 with Retry-After beyond them; an org at its own limit still gets 429."""
    endpoint._uploads[new_id()] = endpoint.MAX_UPLOADS - endpoint.MAX_UPLOADS_OF_ORG
    response = send(register())

    assert (503, "service.unavailable") == error_of(response)
    assert "1" == response.headers["Retry-After"]
    assert (429, "rate_limit.exceeded") == error_of(send(alice))
