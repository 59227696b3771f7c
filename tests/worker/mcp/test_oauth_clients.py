"""Our registration at an authorization server that may forget it."""

import time
from typing import Any

import pytest

from tests.worker.mcp.oauth_servers import NOTHING, Internet, Process, granted, in_loop

MOVED = "https://cell-2.example.com/v1/mcp-oauth/callback"
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


@pytest.mark.parametrize("echoed", [None, "https://else.example.com/callback"])
def test_a_page_has_a_client_that_people_come_back_here_from(echoed: str | None) -> None:
    """After a change of our address another is registered: once by a session, whatever redirect
    URIs the response has.
    """

    async def story(internet: Internet) -> None:
        internet.registered = {"redirect_uris": [echoed]} if echoed else {}
        stored = (await granted(internet))["client"]
        made = await Process(internet, {"client": stored}).asked()
        assert "registered" == made["client"]["client_id"]

        process = Process(internet, {"client": stored}, redirect_uri=MOVED)
        for _ in range(2):
            made = await process.asked()
            assert ("c2", [MOVED]) == (made["client"]["client_id"], made["client"]["redirect_uris"])
            process.oauth.take({**NOTHING, "client": stored})
        answered = {**made, "code": "c", "iss": None}
        process.oauth.take({**NOTHING, "answered": answered})
        assert 200 == await process.post()
        assert MOVED == internet.token_requests[-1][1]["redirect_uri"]

    in_loop(story)


@pytest.mark.parametrize("why", ["expired", "revoked", "scope"])
def test_a_grant_leads_to_a_page_with_a_client_for_our_address(why: str) -> None:
    """It is used and refreshed with its own client after a change of our address, until it is of
    no use, or a further scope is required.
    """

    async def story(internet: Internet) -> None:
        grant = {**await granted(internet), "expires_at": time.time() - 1}
        process = Process(internet, {"grant": grant}, redirect_uri=MOVED)
        assert 200 == await process.post()
        assert "registered" == internet.token_requests[-1][1]["client_id"]

        if why == "scope":
            internet.needs = "files"
        else:
            internet.valid.clear()
            internet.token_status = 400
        if why == "expired":
            process.oauth.context.token_expiry_time = time.time() - 1
        made = await process.asked()
        assert "c2" == made["client"]["client_id"]
        if why == "scope":
            internet.needs = ""
            process.oauth.context.token_expiry_time = time.time() - 1
            assert 200 == await process.post()
            assert "registered" == internet.token_requests[-1][1]["client_id"]

    in_loop(story)


def test_a_code_that_is_refused_leads_to_a_page_with_a_client_for_our_address() -> None:
    """The page was made before our address changed."""

    async def story(internet: Internet) -> None:
        made = await Process(internet, {}).asked()
        internet.token_status = 400
        answered = {**made, "code": "c", "iss": None}
        process = Process(internet, {"answered": answered}, redirect_uri=MOVED)
        assert "c2" == (await process.asked())["client"]["client_id"]

    in_loop(story)


def test_a_grant_is_refreshed_where_no_client_can_be_registered() -> None:
    """A further scope was required after our address had changed."""

    async def story(internet: Internet) -> None:
        grant = await granted(internet)
        internet.needs, internet.registered = "files", {"redirect_uris": "no list"}
        process = Process(internet, {"grant": grant}, redirect_uri=MOVED)
        assert "failed" in str(await process.refused())

        internet.needs = ""
        process.oauth.context.token_expiry_time = time.time() - 1
        assert 200 == await process.post()
        assert "refresh_token" == internet.token_requests[-1][1]["grant_type"]

    in_loop(story)
