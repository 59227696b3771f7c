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


@pytest.mark.parametrize(
    ("stored", "expected"), [(None, "c2"), ({"client_id": "registered"}, "c2"), (OTHER, "other")]
)
def test_a_client_that_is_refused_for_a_code_is_replaced(
    stored: dict[str, Any] | None, expected: str
) -> None:
    """Its secret has expired, for example, which the page does not show; one client is registered,
    however many requests the session makes with the code.
    """

    async def story(internet: Internet) -> None:
        made = await Process(internet, {}).asked()
        internet.forgotten = {"registered"}
        answered = {**made, "code": "c", "iss": None}
        process = Process(internet, {"client": stored, "answered": answered})
        for _ in range(2):  # the SDK makes two to begin a session
            made = await process.asked()
            assert expected == made["client"]["client_id"]
        assert 1 == len(internet.token_requests)
        assert (1 if expected == "other" else 2) == internet.registrations

        answered = {**made, "code": "c", "iss": None}
        assert 200 == await Process(internet, {"client": stored, "answered": answered}).post()

    in_loop(story)


def test_a_client_that_replaces_another_is_not_replaced_at_once() -> None:
    """An authorization server that refuses each client would have people visit pages for ever."""

    async def story(internet: Internet) -> None:
        made = await Process(internet, {}).asked()
        client = {**made["client"], "is_replacement": True}
        internet.token_status, internet.token_error = 400, "invalid_client"
        made = await Process(internet, {"client": client}).asked()
        process = Process(internet, {"answered": {**made, "code": "c", "iss": None}})
        assert "failed: invalid_client" in str(await process.refused())
        assert 1 == internet.registrations

        process.oauth.take({**NOTHING, "client": made["client"]})
        made = await process.asked()
        process.oauth.take({**NOTHING, "answered": {**made, "code": "c", "iss": None}})
        assert "c2" == (await process.asked())["client"]["client_id"]

    in_loop(story)


@pytest.mark.parametrize("issuer", [None, "https://elsewhere.example.com"])
def test_a_client_that_was_refused_does_not_come_back_with_the_next_page(
    issuer: str | None,
) -> None:
    """It is that of the owner's grant, and was registered after the one in place of it. If that one
    is another authorization server's, a third is registered.
    """

    async def story(internet: Internet) -> None:
        grant = await granted(internet)
        internet.valid.clear()
        del grant["tokens"]["refresh_token"]
        stored = {**OTHER, "client_id_issued_at": grant["client"]["client_id_issued_at"] - 1}
        made = await Process(internet, {"grant": grant, "client": stored}).asked()
        assert "registered" == made["client"]["client_id"]
        internet.forgotten = {"registered"}
        answered = {**made, "code": "c", "iss": None}
        made = await Process(internet, {"client": stored, "answered": answered}).asked()

        client = {
            **made["client"],
            "is_replacement": True,
            **({"issuer": issuer} if issuer else {}),
        }
        made = await Process(internet, {"grant": grant, "client": client}).asked()
        assert ("c2" if issuer else "other") == made["client"]["client_id"]
        assert made["is_replacement"]

    in_loop(story)


def expired(client: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a client that was registered for 30 days, 31 days ago."""
    now = int(time.time())
    times = {"client_id_issued_at": now - 31 * 86400, "client_secret_expires_at": now - 86400}
    return {**client, "client_secret": "hidden", **times, **fields}


@pytest.mark.parametrize(
    ("fields", "stored", "expected"),
    [
        ({}, None, "c2"),
        ({}, expired({"client_id": "older"}), "c2"),
        ({}, {"client_id": "newer", "issuer": "https://login.example.com"}, "newer"),
        ({}, {"client_id": "newer", "issuer": "https://elsewhere.example.com"}, "c2"),
        ({"client_secret_expires_at": 0}, None, "registered"),
        ({"client_secret_expires_at": None}, None, "registered"),
    ],
)
@pytest.mark.parametrize("is_granted", [True, False])
def test_a_page_has_no_client_whose_secret_has_expired(
    is_granted: bool, fields: dict[str, Any], stored: dict[str, Any] | None, expected: str
) -> None:
    """The authorization server would show the page, and refuse the code."""

    async def story(internet: Internet) -> None:
        grant = await granted(internet)
        del grant["tokens"]["refresh_token"]
        grant["client"] = expired(grant["client"], **fields)
        internet.valid.clear()
        access = {"grant": grant, "client": stored} if is_granted else {"client": grant["client"]}
        client = (await Process(internet, access).asked())["client"]
        after = "c2" if expected == "newer" and not is_granted else expected
        assert after == client["client_id"]

    in_loop(story)


def test_a_client_whose_secret_is_registered_as_expired_is_used() -> None:
    """The clocks differ; another registration would lead to the same."""

    async def story(internet: Internet) -> None:
        internet.registered = expired({})
        for _ in range(2):
            await Process(internet, {}).asked()
        assert 2 == internet.registrations

    in_loop(story)


def test_a_page_has_the_newest_client_and_tokens_are_refreshed_with_their_own() -> None:
    """Others have found that an older client is refused for codes; this one may still work."""

    async def story(internet: Internet) -> None:
        grant = await granted(internet)
        older = int(time.time()) - 1
        grant["client"]["client_id_issued_at"] = older
        newer = {**OTHER, "client_id_issued_at": older + 1}
        process = Process(internet, {"grant": grant, "client": newer})
        internet.needs = "files"
        assert "other" == (await process.asked())["client"]["client_id"]

        internet.needs = ""
        internet.valid.clear()
        assert 200 == await process.post()
        assert "refresh_token" == internet.token_requests[-1][1]["grant_type"]
        assert "registered" == internet.token_requests[-1][1]["client_id"]
        assert 1 == internet.registrations

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
