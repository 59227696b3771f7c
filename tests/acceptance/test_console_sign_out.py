"""Signing out of the console in a real Chromium: the log-in ends, or the page says otherwise."""

import base64
import json
from datetime import datetime, timedelta

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, Route, expect

from arkloop.api.auth import access_tokens, signed_tokens
from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_settings import press, signed_in
from tests.caller import Caller
from tests.system import System

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
LOGOUT = "**/v1/auth/logout"


def sign_in_page(page: Page) -> Locator:
    return page.get_by_role("heading", name="Sign in to Arkloop Runs")


def expired(headers: dict[str, str], system: System) -> str:
    """Make the token of these headers as it would be 16 minutes later."""
    payload = headers["authorization"].split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    past = {name: claims[name] - 16 * 60 for name in ("iat", "exp")}
    return signed_tokens.sign(system.connections.settings, access_tokens.TYPE, {**claims, **past})


def test_an_expired_access_token_is_renewed_to_sign_out(
    context: BrowserContext, user: Caller, system: System
) -> None:
    """The service refuses the token of 16 minutes ago; a reload still finds no log-in."""
    page = signed_in(context, user, "/keys")
    renewed: list[str] = []
    context.on("response", lambda r: renewed.append(r.url) if r.url.endswith("/refresh") else None)

    def age(route: Route) -> None:
        sent = route.request.headers
        token = sent["authorization"] if renewed else f"Bearer {expired(sent, system)}"
        route.continue_(headers={**sent, "authorization": token})

    context.route(LOGOUT, age)
    page.clock.set_fixed_time(datetime.now().astimezone() + timedelta(minutes=16))
    press(page, "Sign out")
    expect(sign_in_page(page)).to_be_visible()
    page.reload()
    expect(sign_in_page(page)).to_be_visible()


def test_a_log_in_that_does_not_end_stays_and_the_page_says_so(
    context: BrowserContext, user: Caller
) -> None:
    """Without a network, or while the service is down, no tab shows that it has signed out."""
    page, other = signed_in(context, user, "/keys"), context.new_page()
    other.goto(f"{user.url}/console#/keys")
    dialog = page.get_by_role("dialog", name="You are still signed in")
    context.route(LOGOUT, lambda route: route.abort())
    press(page, "Sign out")
    expect(dialog).to_contain_text("cannot be reached")
    context.unroute(LOGOUT)
    down = {"code": "http.unavailable", "message": "Come back later.", "details": {}}
    context.route(LOGOUT, lambda route: route.fulfill(status=503, json=down))
    press(dialog, "Sign out")
    expect(dialog).to_contain_text("Come back later.")
    press(dialog, "Stay signed in")
    for tab in (page, other):
        expect(tab.get_by_role("heading", name="API keys", exact=True)).to_be_visible()

    context.unroute(LOGOUT)
    press(page, "Sign out")
    for tab in (page, other):
        expect(sign_in_page(tab)).to_be_visible()
    page.reload()
    expect(sign_in_page(page)).to_be_visible()
