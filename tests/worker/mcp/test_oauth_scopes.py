"""Scopes that a call needs beyond those that were granted."""

import time

import pytest

from tests.worker.mcp.oauth_servers import Internet, Process, granted, in_loop


@pytest.mark.parametrize("shows_scope", [True, False])
def test_a_grant_has_the_scopes_that_its_page_asked_for(shows_scope: bool) -> None:
    """The next page asks for these as well; an authorization server may leave `scope` out where it
    grants what it was asked for.
    """

    async def story(internet: Internet) -> None:
        internet.shows_scope, internet.gives = shows_scope, "base"
        grant = await granted(internet)
        internet.needs = "files"
        made = await Process(internet, {"grant": grant}).asked()
        assert ("base files", "files") == (made["scope"], made["missing"])
        assert "scope=base+files" in made["url"]

        internet.gives = "base files"
        process = Process(internet, {"answered": {**made, "code": "c", "iss": None}})
        assert 200 == await process.post()
        assert process.oauth.grant is not None
        assert "base files" == process.oauth.grant["tokens"]["scope"]

        internet.needs = "mail"
        made = await Process(internet, {"grant": process.oauth.grant}).asked()
        assert "base files mail" == made["scope"]

    in_loop(story)


def test_a_grant_says_what_its_page_has_asked_for() -> None:
    """It still does when it has been refreshed; a page that lacks a token asks for no scope."""

    async def story(internet: Internet) -> None:
        made = await Process(internet, {}).asked()
        assert made["missing"] is None
        asked = {"run_id": "1", "scope": made["scope"]}
        answered = {**made, "asked": asked, "code": "c", "iss": None}
        process = Process(internet, {"answered": answered})
        assert 200 == await process.post()
        grant = process.oauth.grant
        assert grant is not None
        assert asked == grant["asked"]

        process = Process(internet, {"grant": {**grant, "expires_at": time.time() - 1}})
        assert 200 == await process.post()
        assert process.oauth.grant is not None
        assert (asked, "base") == (
            process.oauth.grant["asked"],
            process.oauth.grant["tokens"]["scope"],
        )

    in_loop(story)
