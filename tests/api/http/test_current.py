"""Links as clients know them, in front of a proxy that strips a prefix."""

from dataclasses import replace

import pytest
from flask.testing import FlaskClient

from arkloop.api.app import create_app
from arkloop.shared.config import InvalidSettings, Settings
from arkloop.shared.storage.connections import Connections
from tests.clients import PASSWORD, User


@pytest.fixture
def prefixed(connections: Connections) -> FlaskClient:
    """A server that is published under `/arkloop`."""
    settings = replace(connections.settings, path_prefix="/arkloop")
    return create_app(connections=replace(connections, settings=settings)).test_client()


def test_links_and_the_cookie_keep_the_prefix(prefixed: FlaskClient, alice: User) -> None:
    """`Location`, `Link` and the refresh cookie's path; a header of the client changes nothing."""
    headers = {"Authorization": f"Bearer {alice.token}", "X-Forwarded-Prefix": "/evil"}
    made = [prefixed.post("/v1/threads", json={}, headers=headers) for _ in range(2)]
    page = prefixed.get("/v1/threads?limit=1", headers=headers)
    body = {"login": alice.login, "password": PASSWORD}
    logged_in = prefixed.post("/v1/auth/login", json=body)
    plain = alice.get("/v1/threads?limit=1", headers={"X-Forwarded-Prefix": "/evil"})

    assert [f"/arkloop/v1/threads/{one.json['id']}" for one in made if one.json] == [
        one.headers["Location"] for one in made
    ]
    assert page.headers["Link"].startswith("</arkloop/v1/threads?limit=1&before=")
    assert "Path=/arkloop/v1/auth" in logged_in.headers["Set-Cookie"]
    assert plain.headers["Link"].startswith("</v1/threads?")


@pytest.mark.parametrize("prefix", ["arkloop", "/arkloop/", "/", "//evil", "https://evil", "/a b"])
def test_a_prefix_that_is_no_path_is_refused(prefix: str) -> None:
    """A wrong prefix is reported at the start, by the name of its setting."""
    with pytest.raises(InvalidSettings, match="ARKLOOP_PATH_PREFIX"):
        Settings.from_env({"ARKLOOP_PATH_PREFIX": prefix})
