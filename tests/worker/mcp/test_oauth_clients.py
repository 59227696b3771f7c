"""Our registration at an authorization server that may forget it."""

import time
from typing import Any

import pytest

from tests.worker.mcp.oauth_servers import NOTHING, Internet, Process, granted, in_loop

OTHER = {"client_id": "other", "issuer": "https://login.example.com"}


def test_a_session_uses_the_client_that_is_stored_now() -> None:
    """An admin who sets `oauth` again has another client registered, also by sessions with one."""

    async def story(internet: Internet) -> None:
        process = Process(internet, {})
        first = (await process.asked())["client"]
        process.oauth.take({**NOTHING, "client": first})
        assert "registered" == (await process.asked())["client"]["client_id"]
        process.oauth.take(NOTHING)
        assert "c2" == (await process.asked())["client"]["client_id"]

    in_loop(story)


@pytest.mark.parametrize(
    ("stored", "expected"), [(None, "c2"), ({"client_id": "registered"}, "c2"), (OTHER, "other")]
)
@pytest.mark.parametrize("is_revoked", [False, True])
def test_a_client_that_is_forgotten_is_replaced(
    is_revoked: bool, stored: dict[str, Any] | None, expected: str
) -> None:
    """A refresh reveals it: the token has expired, or was revoked. A page has a new client."""

    async def story(internet: Internet) -> None:
        grant = await granted(internet)
        if not is_revoked:
            grant["expires_at"] = time.time() - 1
        internet.valid.clear()
        internet.token_status, internet.token_error = 401, "invalid_client"
        made = await Process(internet, {"grant": grant, "client": stored}).asked()
        assert expected == made["client"]["client_id"]
        assert f"client_id={expected}&" in made["url"]

        internet.token_status = 200
        answered = {**made, "code": "c", "iss": None}
        assert 200 == await Process(internet, {"grant": grant, "answered": answered}).post()

    in_loop(story)


def test_a_client_of_the_admins_is_not_replaced() -> None:
    """Its secret may be mistyped, which only the admin can correct."""

    async def story(internet: Internet) -> None:
        own = {"client_id": "own", "client_secret": "hidden"}
        grant = {**await granted(internet, **own), "expires_at": time.time() - 1}
        internet.token_status, internet.token_error = 401, "invalid_client"
        made = await Process(internet, {"grant": grant, "client": OTHER}, **own).asked()
        assert "own" == made["client"]["client_id"]
        assert 0 == internet.registrations

    in_loop(story)
